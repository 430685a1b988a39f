"""Tokenizers whose learned queries read the patches of a clip: LARP (arXiv 2410.21264), AdapTok (arXiv 2505.17011).

One architecture: a ViT over patches and queries, a table of codes, a ViT over codes and patch queries. AdapTok cuts
clips into blocks of time and masks by them, so that its tokens have an order.
"""
