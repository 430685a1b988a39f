"""Other families of tokenizers behind `vftok.Tokenizer`'s interface, a folder each; their rows: tokenizer/families.py."""
