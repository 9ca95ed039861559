"""From sources of text to packed, memory-mappable blocks of tokens, chat records and evaluation items."""
