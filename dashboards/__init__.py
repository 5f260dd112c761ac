"""What people look at. Reads stored rows; imports no torch and no Ray."""
