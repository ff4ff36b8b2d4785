"""Evaluating students on patients that no training has used."""
