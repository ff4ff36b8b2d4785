"""Tests of SQL, pushed-down predicates and nearest tiles."""
