"""Submissions that attack their judge, and what becomes of them: `python -m tests.checks.hostile`."""
