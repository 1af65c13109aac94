"""Tests of pure code: no broker, no disk, no network."""
