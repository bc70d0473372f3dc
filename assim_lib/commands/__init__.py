"""The commands: each has its arguments, and returns the work to do once all of them are found right."""
