"""Network classes: what is known of one family of networks, and of no other."""
