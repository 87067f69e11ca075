"""Speech from eSpeak NG's shared library, in a process of its own: ``python espeak.py FOLDER TEXTS OUTPUT``.

FOLDER holds ``libespeak-ng.so`` and ``espeak-ng-data``; TEXTS is a JSON list of strings; OUTPUT becomes an
``.npz`` with

    samples, sample_ends           int16 waveforms, flat, and where each ends
    names, starts, phoneme_ends    names of the phonemes and the samples where they start (within their utterance)

The library has global state and is not thread-safe: nothing else may run in its process. The state goes on from one
text to the next (the voice's flutter), so the same list gives the same bytes, and a text alone gives slightly others.
Needs numpy only, so that it can be run by its path.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

VOICE = b"en-us"
RATE = 22_050
# From espeak_ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000
_POSITION_CHARACTER, _UTF8 = 1, 1
_END_OF_LIST, _PHONEME = 0, 7


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """The library, initialised; one per process."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _PHONEME_EVENTS | _DONT_EXIT)
        if rate != RATE:
            raise RuntimeError(f"espeak_Initialize gave {rate}, expected {RATE} Hz")
        if self._library.espeak_SetVoiceByName(VOICE):
            raise RuntimeError(f"no voice {VOICE.decode()} in {folder}")
        self._samples: list[np.ndarray] = []
        self._phonemes: list[tuple[str, int]] = []
        self._callback = _Callback(self._receive)  # kept, or it would be collected while the library has it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            if event.type == _PHONEME:
                self._phonemes.append((event.id.string.decode(), event.sample))
            index += 1
        return 0

    def say(self, text: str) -> tuple[np.ndarray, list[tuple[str, int]]]:
        """The waveform, int16, and the phonemes with the samples where they start."""
        self._samples, self._phonemes = [], []
        content = text.encode() + b"\0"
        failed = self._library.espeak_Synth(
            content, ctypes.c_size_t(len(content)), 0, _POSITION_CHARACTER, 0, _UTF8, None, None
        )
        if failed:
            raise RuntimeError(f"espeak_Synth failed with {failed} on {text!r}")
        return np.concatenate([np.empty(0, np.int16), *self._samples]).astype(np.int16), self._phonemes


def main(folder: str, texts: str, output: str) -> None:
    speaker = Speaker(Path(folder))
    spoken = [speaker.say(text) for text in json.loads(Path(texts).read_text())]
    np.savez(
        output,
        samples=np.concatenate([samples for samples, _ in spoken]),
        sample_ends=np.cumsum([len(samples) for samples, _ in spoken]),
        names=np.array([name for _, phonemes in spoken for name, _ in phonemes]),
        starts=np.array([start for _, phonemes in spoken for _, start in phonemes]),
        phoneme_ends=np.cumsum([len(phonemes) for _, phonemes in spoken]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
