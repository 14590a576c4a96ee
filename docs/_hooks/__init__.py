"""What the hook generates, one idea a file."""
