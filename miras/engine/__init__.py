"""The engines: one definition (`reference`) and the fast paths that must equal it."""
