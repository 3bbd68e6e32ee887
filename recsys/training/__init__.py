"""Losses, objectives and the one loop. Never imported by eval or retrieval."""
