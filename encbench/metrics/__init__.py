"""What generated images are scored by; one file or package a metric."""
