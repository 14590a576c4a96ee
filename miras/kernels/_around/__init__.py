"""What stands around a memory: `heads` before it, `gated` after it, `ops` as operators."""
