"""Text to speech with two backbones: FastSpeech 2 and Transformer-TTS."""
