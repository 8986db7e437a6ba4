"""Out of the house: one model folder, many formats, each behind a parity gate."""
