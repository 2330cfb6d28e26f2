"""The nouns of the cloud, one folder each."""
