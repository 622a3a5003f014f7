"""What you build."""
