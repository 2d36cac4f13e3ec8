"""What a programme says: pure, whole numbers, no clock, no input or output."""
