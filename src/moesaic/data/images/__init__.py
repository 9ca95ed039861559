"""Images as tokens: codebook, vocabulary, interleaved records, filters."""
