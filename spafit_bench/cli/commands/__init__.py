"""What each command does, given its flags; mostly returns text for stdout."""
