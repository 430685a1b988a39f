"""Other families of tokenizers behind the interface of `vftok.Tokenizer`, a folder each; rows in tokenizer/families.py."""
