"""EVATok (arXiv 2603.12267): pixels to VQ tokens by a Q-Former and back, as many per time step as asked for."""
