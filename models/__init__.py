"""PyTorch networks: backbones, pixel decoders, the masked-attention decoder, published checkpoints."""
