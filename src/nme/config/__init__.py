"""What a user may write. No torch."""
