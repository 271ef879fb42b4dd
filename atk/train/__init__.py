"""The trainers: one file a method, and what they share."""
