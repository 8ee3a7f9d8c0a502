"""Recipes: `jointrd train --config NAME`. Each file's `get_config` returns a config; its head says what it is for."""
