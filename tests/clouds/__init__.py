"""Tests of lakes on a real S3 server and on emulators of other clouds."""
