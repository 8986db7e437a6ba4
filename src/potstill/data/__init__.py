"""What is asked: rows become records, records become token ids."""
