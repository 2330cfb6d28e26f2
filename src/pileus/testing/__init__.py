"""What tests of this cloud, ours and a driver author's, stand on."""
