"""What is learned: from a snapshot to a promoted adapter. No faust here."""
