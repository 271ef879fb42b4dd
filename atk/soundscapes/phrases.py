"""Phrases for event classes: clauses ("a dog barks") and noun phrases ("a dog barking").

`{a}` is replaced by adjectives and `{b}` by adverbs; the article "a" becomes "an" before a vowel. Subjects and verbs
vary within a class, and no two classes share a form. `classes_named` finds the classes that a caption names.
"""

import re
from functools import cache

CLAUSES: dict[str, tuple[str, ...]] = {
    "dog bark": ("a {a}dog barks{b}", "a {a}hound is barking{b}", "a {a}dog woofs{b}"),
    "church bell": ("a {a}church bell rings{b}", "a {a}church bell tolls{b}", "a {a}bell chimes{b}"),
    "rain": ("{a}rain falls{b}", "{a}rain patters{b}", "it rains{b}"),
    "engine": ("a {a}engine runs{b}", "a {a}car engine idles{b}", "a {a}motor rumbles{b}"),
    "bird chirp": ("a {a}bird chirps{b}", "a {a}bird tweets{b}", "a {a}songbird sings{b}"),
    "siren": ("a {a}siren wails{b}", "a {a}police siren sounds{b}", "a {a}siren howls{b}"),
    "footsteps": ("someone walks{b}", "{a}footsteps sound{b}", "a person takes {a}steps{b}"),
    "telephone ring": ("a {a}telephone rings{b}", "a {a}phone is ringing{b}", "a {a}telephone jingles{b}"),
    "cow moo": ("a {a}cow moos{b}", "a {a}cow lows{b}", "a {a}cow is mooing{b}"),
    "thunder": ("{a}thunder rumbles{b}", "{a}thunder rolls{b}", "a {a}thunderclap sounds{b}"),
    "flute": ("a {a}flute plays{b}", "someone plays a {a}flute{b}", "a {a}flute is playing{b}"),
    "clapping": ("someone claps{b}", "a person claps their hands{b}", "{a}hands clap{b}"),
    "cricket": ("a {a}cricket chirrs{b}", "a {a}cricket sings{b}", "a {a}cricket is singing{b}"),
    "piano": ("a {a}piano plays{b}", "someone plays a {a}piano{b}", "{a}piano notes sound{b}"),
    "car horn": ("a {a}car horn honks{b}", "a {a}car honks{b}", "a {a}car beeps its horn{b}"),
    "helicopter": ("a {a}helicopter flies by{b}", "a {a}helicopter hovers{b}", "a {a}chopper passes{b}"),
    "frog croak": ("a {a}frog croaks{b}", "a {a}frog is croaking{b}", "a {a}toad croaks{b}"),
    "waves": ("{a}waves break{b}", "{a}waves roll in{b}", "the sea washes ashore{b}"),
    "door knock": ("someone knocks{b}", "a person knocks on a door{b}", "a {a}knock sounds{b}"),
    "drill": ("a {a}drill whirs{b}", "someone drills{b}", "a {a}power drill runs{b}"),
    "cat meow": ("a {a}cat meows{b}", "a {a}cat is meowing{b}", "a {a}kitten mews{b}"),
    "alarm": ("a {a}alarm beeps{b}", "a {a}alarm goes off{b}", "a {a}digital alarm sounds{b}"),
    "kettle": ("a {a}kettle whistles{b}", "a {a}kettle boils{b}", "a {a}steam whistle blows{b}"),
    "drum": ("a {a}drum beats{b}", "someone plays {a}drums{b}", "{a}drums play{b}"),
    "guitar": ("a {a}guitar plays{b}", "someone plucks a {a}guitar{b}", "{a}guitar strings are plucked{b}"),
    "glass clink": ("{a}glasses clink{b}", "a {a}glass clinks{b}", "someone clinks glasses{b}"),
    "wind": ("{a}wind blows{b}", "the wind howls{b}", "a {a}wind gusts{b}"),
    "fire": ("a {a}fire crackles{b}", "a {a}fire burns{b}", "{a}flames crackle{b}"),
    "doorbell": ("a {a}doorbell rings{b}", "someone rings a {a}doorbell{b}", "a {a}door chime sounds{b}"),
    "sheep bleat": ("a {a}sheep bleats{b}", "a {a}goat bleats{b}", "a {a}lamb is bleating{b}"),
    "clock": ("a {a}clock ticks{b}", "a {a}clock is ticking{b}", "a {a}watch ticks{b}"),
    "trumpet": ("a {a}trumpet plays{b}", "someone blows a {a}trumpet{b}", "a {a}trumpet sounds{b}"),
    "owl hoot": ("a {a}owl hoots{b}", "a {a}owl calls{b}", "a {a}owl is hooting{b}"),
    "water drip": ("{a}water drips{b}", "a {a}tap drips{b}", "{a}drops of water fall{b}"),
    "violin": ("a {a}violin plays{b}", "someone bows a {a}violin{b}", "a {a}fiddle plays{b}"),
    "phone keypad": ("someone dials a number{b}", "{a}phone keys beep{b}", "a {a}phone is dialed{b}"),
    "seal bark": ("a {a}seal barks{b}", "a {a}sea lion barks{b}"),
    "gong": ("a {a}gong sounds{b}", "someone strikes a {a}gong{b}"),
    "shower": ("a {a}shower runs{b}", "someone showers{b}"),
    "motorcycle": ("a {a}motorcycle runs{b}", "a {a}motorbike idles{b}"),
    "alarm clock": ("a {a}alarm clock rings{b}", "a {a}wind-up clock rings{b}"),
    "explosion": ("a {a}bomb explodes{b}", "a {a}explosion booms{b}"),
    "recorder": ("a {a}recorder plays{b}", "someone plays a {a}recorder{b}"),
    "cicada": ("a {a}cicada buzzes{b}", "a {a}cicada sings{b}"),
    "harpsichord": ("a {a}harpsichord plays{b}", "someone plays a {a}harpsichord{b}"),
    "train horn": ("a {a}train horn blows{b}", "a {a}train sounds its horn{b}"),
    "hammer": ("someone hammers{b}", "a {a}hammer strikes{b}"),
    "chainsaw": ("a {a}chainsaw runs{b}", "a {a}chainsaw roars{b}"),
    "baby cry": ("a {a}baby cries{b}", "a {a}infant wails{b}"),
    "banjo": ("a {a}banjo plays{b}", "someone plucks a {a}banjo{b}"),
    "trombone": ("a {a}trombone plays{b}", "someone blows a {a}trombone{b}"),
    "viola": ("a {a}viola plays{b}", "someone bows a {a}viola{b}"),
}

NOUNS: dict[str, tuple[str, ...]] = {
    "dog bark": ("a {a}dog barking{b}", "a {a}barking dog", "the {a}bark of a dog"),
    "church bell": ("a {a}church bell ringing{b}", "a {a}bell tolling{b}", "the {a}toll of a bell"),
    "rain": ("{a}rain falling{b}", "{a}rainfall", "{a}pattering rain"),
    "engine": ("a {a}engine running{b}", "a {a}idling engine", "the {a}rumble of a motor"),
    "bird chirp": ("a {a}bird chirping{b}", "a {a}chirping bird", "{a}birdsong"),
    "siren": ("a {a}siren wailing{b}", "a {a}wailing siren", "a {a}police siren"),
    "footsteps": ("{a}footsteps", "someone walking{b}", "the {a}steps of a person"),
    "telephone ring": ("a {a}telephone ringing{b}", "a {a}ringing phone", "the {a}ring of a telephone"),
    "cow moo": ("a {a}cow mooing{b}", "a {a}mooing cow", "the {a}moo of a cow"),
    "thunder": ("{a}thunder rumbling{b}", "a {a}clap of thunder", "{a}rolling thunder"),
    "flute": ("a {a}flute playing{b}", "a {a}flute melody", "the {a}notes of a flute"),
    "clapping": ("someone clapping{b}", "{a}clapping hands", "{a}hand claps"),
    "cricket": ("a {a}cricket chirring{b}", "a {a}chirring cricket", "the {a}song of a cricket"),
    "piano": ("a {a}piano playing{b}", "a {a}piano melody", "the {a}notes of a piano"),
    "car horn": ("a {a}car horn honking{b}", "a {a}honking car", "the {a}horn of a car"),
    "helicopter": ("a {a}helicopter flying{b}", "a {a}hovering helicopter", "the {a}rotor of a helicopter"),
    "frog croak": ("a {a}frog croaking{b}", "a {a}croaking frog", "the {a}croak of a toad"),
    "waves": ("{a}waves breaking{b}", "{a}breaking waves", "the {a}surf of the sea"),
    "door knock": ("someone knocking{b}", "{a}knocks on a door", "a {a}knock sounding{b}"),
    "drill": ("a {a}drill whirring{b}", "a {a}power drill", "someone drilling{b}"),
    "cat meow": ("a {a}cat meowing{b}", "a {a}meowing cat", "the {a}mewing of a kitten"),
    "alarm": ("a {a}alarm beeping{b}", "a {a}beeping alarm", "the {a}beeps of an alarm"),
    "kettle": ("a {a}kettle whistling{b}", "a {a}whistling kettle", "a {a}steam whistle"),
    "drum": ("a {a}drum beating{b}", "{a}drumming", "a {a}drum beat"),
    "guitar": ("a {a}guitar playing{b}", "a {a}guitar melody", "{a}plucked guitar strings"),
    "glass clink": ("{a}glasses clinking{b}", "a {a}clinking glass", "the {a}clink of glasses"),
    "wind": ("{a}wind blowing{b}", "a {a}howling wind", "{a}gusts of wind"),
    "fire": ("a {a}fire crackling{b}", "a {a}crackling fire", "the {a}crackle of flames"),
    "doorbell": ("a {a}doorbell ringing{b}", "a {a}door chime", "the {a}ring of a doorbell"),
    "sheep bleat": ("a {a}sheep bleating{b}", "a {a}bleating lamb", "the {a}bleat of a goat"),
    "clock": ("a {a}clock ticking{b}", "a {a}ticking clock", "the {a}ticking of a watch"),
    "trumpet": ("a {a}trumpet playing{b}", "a {a}trumpet melody", "the {a}notes of a trumpet"),
    "owl hoot": ("a {a}owl hooting{b}", "a {a}hooting owl", "the {a}hoot of an owl"),
    "water drip": ("{a}water dripping{b}", "a {a}dripping tap", "{a}drops of water"),
    "violin": ("a {a}violin playing{b}", "a {a}violin melody", "the {a}notes of a fiddle"),
    "phone keypad": ("{a}phone keys beeping{b}", "someone dialing{b}", "the {a}keypad of a phone"),
    "seal bark": ("a {a}seal barking{b}", "a {a}barking sea lion"),
    "gong": ("a {a}gong sounding{b}", "the {a}stroke of a gong"),
    "shower": ("a {a}shower running{b}", "the {a}hiss of a shower"),
    "motorcycle": ("a {a}motorcycle running{b}", "a {a}idling motorbike"),
    "alarm clock": ("a {a}alarm clock ringing{b}", "a {a}ringing wind-up clock"),
    "explosion": ("a {a}bomb exploding{b}", "a {a}explosion"),
    "recorder": ("a {a}recorder playing{b}", "a {a}recorder melody"),
    "cicada": ("a {a}cicada buzzing{b}", "a {a}buzzing cicada"),
    "harpsichord": ("a {a}harpsichord playing{b}", "a {a}harpsichord melody"),
    "train horn": ("a {a}train horn blowing{b}", "the {a}horn of a train"),
    "hammer": ("someone hammering{b}", "a {a}hammer striking{b}"),
    "chainsaw": ("a {a}chainsaw running{b}", "a {a}roaring chainsaw"),
    "baby cry": ("a {a}baby crying{b}", "a {a}crying infant"),
    "banjo": ("a {a}banjo playing{b}", "a {a}banjo melody"),
    "trombone": ("a {a}trombone playing{b}", "a {a}trombone melody"),
    "viola": ("a {a}viola playing{b}", "a {a}viola melody"),
}

PITCH_WORDS = {"low": ("low", "low-pitched", "deep"), "high": ("high", "high-pitched", "shrill")}
LOUDNESS_ADJECTIVES = {"quiet": ("quiet", "soft", "faint"), "loud": ("loud", "noisy")}
LOUDNESS_ADVERBS = {"quiet": ("quietly", "softly", "faintly"), "loud": ("loudly", "noisily")}
COUNT_WORDS: dict[int, tuple[str, ...]] = {2: ("twice", "two times"), 3: ("three times",)}

# Short names of a class outside its forms; a noun that several classes share (car, horn, phone) needs its verb.
HEADS: dict[str, tuple[str, ...]] = {
    "dog bark": ("dog", "hound"),
    "church bell": ("bell",),
    "rain": ("rain", "rainfall"),
    "engine": ("engine", "motor"),
    "bird chirp": ("bird", "songbird", "birdsong"),
    "siren": ("siren",),
    "footsteps": ("footsteps", "steps", "walks"),
    "telephone ring": ("telephone", "phone rings", "ringing phone"),
    "cow moo": ("cow",),
    "thunder": ("thunder", "thunderclap"),
    "flute": ("flute",),
    "clapping": ("claps", "hands"),
    "cricket": ("cricket",),
    "piano": ("piano",),
    "car horn": ("car horn", "car honks", "car beeps", "horn honks", "honking"),
    "helicopter": ("helicopter", "chopper", "rotor"),
    "frog croak": ("frog", "toad"),
    "waves": ("waves", "sea", "surf"),
    "door knock": ("knocks",),
    "drill": ("drill",),
    "cat meow": ("cat", "kitten"),
    "alarm": ("alarm",),
    "kettle": ("kettle", "whistle"),
    "drum": ("drum",),
    "guitar": ("guitar",),
    "glass clink": ("glass",),
    "wind": ("wind",),
    "fire": ("fire", "flames"),
    "doorbell": ("doorbell", "door bell", "door chime", "door chimes"),
    "sheep bleat": ("sheep", "goat", "lamb"),
    "clock": ("clock", "watch"),
    "trumpet": ("trumpet",),
    "owl hoot": ("owl",),
    "water drip": ("water", "tap", "drip"),
    "violin": ("violin", "fiddle"),
    "phone keypad": ("keypad", "phone keys", "phone keypad", "dials"),
    "seal bark": ("seal", "sea lion"),
    "gong": ("gong",),
    "shower": ("shower",),
    "motorcycle": ("motorcycle", "motorbike", "motorcycle engine", "motorbike engine"),
    "alarm clock": ("alarm clock", "wind-up", "wind-up clock", "clock rings", "ringing clock"),
    "explosion": ("explosion", "bomb"),
    "recorder": ("recorder",),
    "cicada": ("cicada",),
    "harpsichord": ("harpsichord",),
    "train horn": ("train", "train horn", "horn blows"),
    "hammer": ("hammer",),
    "chainsaw": ("chainsaw",),
    "baby cry": ("baby", "infant"),
    "banjo": ("banjo",),
    "trombone": ("trombone",),
    "viola": ("viola",),
}

_ARTICLES = {"a", "an", "the", "is", "are"}
_MODIFIERS = {
    word
    for table in (PITCH_WORDS, LOUDNESS_ADJECTIVES, LOUDNESS_ADVERBS, COUNT_WORDS)
    for phrases in table.values()
    for phrase in phrases
    for word in re.findall(r"[a-z]+", phrase)
}


def classes_named(text: str) -> set[str]:
    """Find the event classes that a caption names.

    The caption is scanned from left to right. At each position, the longest run of words that names a class counts and
    is skipped, so "a car horn honks" is not an engine, and "an alarm clock rings" is neither an alarm nor a clock.

    A class is named by its forms in `CLAUSES` and `NOUNS`, or by the shorter `HEADS` in captions that are ungrammatical
    or incomplete ("dog bark", "the dogs"). Case, articles, "is", "are", and the words for pitch, loudness, and count
    are ignored everywhere. Words are compared by their stems (bark, barks, barking). A run doesn't extend across
    punctuation other than a hyphen.

    If classes share a noun, the verb decides ("a horn honks", "a horn blows"; "a clock ticks", "a clock rings"). Alone,
    "alarm", "clock", "engine", and "wind" stand for the class of that name, and "sea" for "waves"; "car", "horn",
    "phone" and "door" stand for none.

    Args:
        text: caption.

    Returns:
        The names of the classes.
    """
    words = _stems(text)
    names = name_by_stems()
    longest = max(map(len, names))
    classes: set[str] = set()
    start = 0
    while start < len(words):
        runs = (words[start:end] for end in range(min(start + longest, len(words)), start, -1))
        run = next((run for run in runs if run in names), None)
        if run is not None:
            classes.add(names[run])
        start += 1 if run is None else len(run)
    return classes


@cache
def name_by_stems() -> dict[tuple[str, ...], str]:
    """Map each run of stems to the class it names; raises ValueError if a run names two classes."""
    names: dict[tuple[str, ...], str] = {}
    for table in (CLAUSES, NOUNS, HEADS):
        for name, forms in table.items():
            for form in forms:
                run = _stems(form.format(a="", b=""))
                if names.setdefault(run, name) != name:
                    raise ValueError(f"{form!r} names both {names[run]!r} and {name!r}")
    return names


def _stems(text: str) -> tuple[str, ...]:
    """Stems of the words that aren't ignored; punctuation is kept."""
    words = re.findall(r"[^\W\d_]+|[^\w\s-]", text.lower())
    return tuple(_stem(word) for word in words if word not in _ARTICLES and word not in _MODIFIERS)


def _stem(word: str) -> str:
    """Strip plural and tense endings: bark, barks and barking have the same stem, and so do cries and crying."""
    word = re.sub(r"(?<=[^s])s$", "", word)
    word = re.sub(r"(.*[aeiouy].*)(?:ing|ed)$", r"\1", word)  # not "ring" or "string"
    word = re.sub(r"(?<=..)e$", "", word)
    word = re.sub(r"(?<=..)y$", "i", word)
    return re.sub(r"(?<=..)(.)\1$", r"\1", word)  # not "off"
