"""Method-neutral parts of bit-width searches."""
