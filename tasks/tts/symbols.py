"""The phonemes that the corpora can hold: constants, so that a backbone is built without data."""

from __future__ import annotations

# eSpeak NG's mnemonics of American English, stress marks (' and ,) included, that occur in the World English Bible.
ESPEAK: tuple[str, ...] = tuple(
    r"""
    '0 '3 '3: '@ 'A: 'A@ 'E 'I 'I2 'O2 'O: 'O@ 'OI 'U 'U@ 'V 'a 'a# 'aI 'aI3 'aI@ 'aU 'aa 'e@ 'eI 'i 'i: 'i@ 'i@3
    'o@ 'oU 'u: ,0 ,3: ,A: ,A@ ,E ,I ,O2 ,O: ,O@ ,OI ,U ,U@ ,V ,a ,a# ,aI ,aI3 ,aU ,aa ,e@ ,eI ,i: ,i@ ,i@3 ,o@
    ,oU ,u: 0 3 3: ; ? @ @- @2 @L A: A@ D E I I# I2 N O2 O: O@ OI S T U U@ V Z _ _! _: _| a a# aI aI3 aI@ aU aa b
    d dZ e@ eI f g h i i: i@ i@3 j k l m n n- o@ oU p r r- s t t# t2 tS u: v w x z
    """.split()  # noqa: SIM905 - quoted one by one, nobody would read them
)

# ARPABET as the CMU dictionary and the Montreal Forced Aligner write it: vowels carry their stress.
ARPABET: tuple[str, ...] = tuple(
    """
    AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 EH2 ER0 ER1 ER2 EY0
    EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW0 UW1
    UW2 V W Y Z ZH sil sp spn
    """.split()  # noqa: SIM905 - quoted one by one, nobody would read them
)
