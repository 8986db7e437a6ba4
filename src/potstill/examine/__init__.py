"""The examiner's part: models answer the test set, and what they are worth is written down."""
