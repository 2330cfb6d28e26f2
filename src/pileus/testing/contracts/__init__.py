"""What every driver and every store owes us, written once."""
