"""The state-space mathematics of Mamba and Mamba-2: `interface` is what the rest of the project calls."""
