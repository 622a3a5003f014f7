"""Submissions that attack their judge, and the harness that sees what becomes of it: `python -m tests.checks.hostile`."""
