"""The same story, for someone who is not watching: submit, look, wait, cancel, resume."""
