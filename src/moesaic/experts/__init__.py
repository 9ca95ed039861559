"""Expert construction: split the dense FFN, initialise routers, refit, convert, check."""
