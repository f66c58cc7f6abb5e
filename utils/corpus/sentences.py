"""Plain English sentences for the demo corpora: small grammars over word lists, seeded, without repetition.

Words are spelled out (no digits, no abbreviations), so a transcript is the sentence in capitals without punctuation.
The lists determine the bytes of the corpora and keep their spelling.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from utils.corpus.words import VARIED_WORDS

LETTERS = (42, 80)  # 2.5 to 5 s at the demo's rates
VARIED_LETTERS = (50, 90)  # 2 to 5 s at the one voice's rate


_LISTS = {
    "person": """
        the baker; my older sister; the new teacher; a young farmer; our neighbour; the tall captain; her
        cousin; the quiet librarian; his grandfather; an old fisherman; the village doctor; my best friend;
        the night guard; a careful driver; the piano player; their uncle; the youngest child; a tired nurse;
        the shopkeeper; our guide; the careless painter; a visiting judge; the postman; my brother; the
        gardener; one of the students; the pilot; a stranger; the cook; her daughter; the mayor; an
        engineer; the singer; a local hunter; the watchmaker; the chief officer; his aunt; a cheerful
        waiter; the blind poet; the goalkeeper; the queen; a young soldier; the carpenter; my father; the
        journalist; a shy girl; the museum keeper; an honest lawyer; the shepherd; our cat; a large brown
        dog; the beekeeper; the chemist; a juggler; the fox; the thief
    """,
    "past": """
        carried; found; bought; sold; painted; cleaned; hid; moved; borrowed; described; repaired; weighed;
        measured; dropped; packed; brought back; wanted; returned; forgot; covered; chose; lost; shook;
        admired; examined; noticed; threw away; picked up; wrapped; photographed; polished; kept; gave away;
        sketched; touched; collected; followed; pushed aside; asked for; paid for
    """,
    "base": """
        carry; find; buy; sell; paint; clean; hide; move; borrow; describe; repair; weigh; measure; drop;
        pack; bring back; return; forget; cover; choose; lose; shake; admire; examine; notice; throw away;
        pick up; wrap; photograph; polish; keep; give away; sketch; touch; collect; push aside; ask for; pay
        for
    """,
    "adjective": """
        heavy; yellow; broken; narrow; wooden; silver; tiny; dusty; round; foreign; cheap; dark green;
        smooth; curious; precious; dirty; leather; blue; warm; huge; thin; golden; ancient; purple; rusty;
        soft; square; useful; white; strange; hollow; fresh; large; pink; sharp; ordinary; plain; beautiful;
        empty; frozen; light brown; shiny; short; thick; wet; orange; simple; famous; loose; rough; cracked;
        bright; ugly; modern; second; missing
    """,
    "thing": """
        basket; violin; lamp; envelope; kettle; bicycle; chair; map; blanket; bottle; hammer; mirror;
        feather; coat; ladder; cheese; photograph; umbrella; necklace; jar; boat; clock; drum; flag; glove;
        wheel; suitcase; vase; ring; shoe; candle; carpet; shell; pencil; trumpet; box; cushion; pocket
        knife; television; guitar; pumpkin; saddle; bowl; telescope; thermometer; newspaper; statue; lemon;
        rope; journal; hat; cage; key; machine; treasure; thread; dish; puzzle; garden hose; measuring jug;
        shirt; wooden spoon; tooth; zip
    """,
    "place": """
        near the old harbour; behind the stone church; in the kitchen; by the river; at the railway station;
        outside the theatre; under the bridge; in the attic; beside the lake; on the top shelf; at the edge
        of the forest; across the road; in front of the school; in the village square; between the two
        houses; on the beach; inside the tower; at the market; along the northern shore; in the middle of
        the field; above the workshop; on the fourth floor; below the waterfall; in the garage; close to the
        airport; at the foot of the mountain; in an empty office; around the corner; on the balcony; in the
        judge's chamber; beyond the orchard; next to the bakery; at the top of the stairs; on the island; in
        the queue; over by the chimney
    """,
    "time": """
        on Monday morning; late last winter; after breakfast; before sunrise; at noon; during the storm;
        every Thursday; in the early evening; two weeks ago; on a foggy night; at the end of June; just
        after midnight; once again; in the third year; on his birthday; for the first time; without a word;
        with great care; in spite of the cold; at the weekend; while nobody looked; on the way home; as
        usual; in a great hurry; shortly before the war; that same afternoon; by mistake; with both hands;
        earlier this month; on Friday
    """,
    "clause": """
        the rain had stopped; the train was late; it was far too cold; nobody else would help; the lights
        went out; the shop was closing; the music grew louder; everyone had gone home; the wind blew from
        the north; snow was falling; the children were asleep; the price was fair; the water began to rise;
        there was no other choice; the bell rang twice; the doors were locked; the telephone would not ring;
        summer was nearly over; the engine made a noise; the judges had agreed; the soup was ready; the road
        was blocked; the moon was full; the crowd began to cheer; the fire had burned down; they were bored;
        the bus had already left; the measure was voted through; the garden looked dry; the ship reached the
        shore
    """,
    "verdict": """
        was worth a fortune; belonged to somebody else; looked better than before; would never be found; had
        been made by hand; was too large for the room; smelled of smoke; came from another country; could
        not be repaired; was a joke; had changed its colour; should be thrown away; was rather unusual; made
        a very good present; was under the bed; weighed less than a feather; had a hole in it; was just an
        illusion; might be useful one day; needed a fresh coat of paint; cost almost nothing
    """,
    "said": """
        said that; was sure that; told us that; believed; heard that; thought; never knew that; doubted
        that; wrote that; had a feeling that; explained that; could not believe that
    """,
    "number": """
        two; three; four; five; six; seven; eight; nine; ten; eleven; twelve; twenty; fifty
    """,
    "group": """
        students; sailors; horses; children; tourists; workers; musicians; sheep; old friends; painters;
        birds; players; officers; travellers; girls; boys; fishermen; visitors; teachers; bees
    """,
    "motion": """
        walked slowly; were waiting; stood together; ran away; sat down to rest; gathered; talked for an
        hour; sang loudly; slept soundly; played a game; had lunch; took pictures; watched the sky; were
        shouting
    """,
}
WORDS = {name: tuple(" ".join(words.split()) for words in text.split(";")) for name, text in _LISTS.items()}

PATTERNS = (
    "{person} {past} the {adjective} {thing} {place}.",
    "{time}, {person} {past} the {adjective} {thing} and one {adjective} {thing}.",
    "{person} {past} the {adjective} {thing} because {clause}.",
    "when {clause}, {person} {past} the {adjective} {thing}.",
    "{person} {said} the {adjective} {thing} {verdict}.",
    "did {person} {base} that {adjective} {thing} {place}?",
    "please {base} the {thing} {place}, and {base} the {adjective} {thing}.",
    "{number} {group} {motion} {place} {time}.",
    "{place}, {number} {group} {motion} until {clause}.",
    "why would {person} {base} the {adjective} {thing}, if {clause}?",
    "the {adjective} {thing} and the {thing} were {place}, but {clause}.",
    "{clause}, so {person} {past} this {adjective} {thing}.",
    "{person} {past} one {thing} and {past} another {thing} {time}.",
    "{person} {said} {clause} {time}.",
)

VARIED_PATTERNS = (
    "{name} {past} the {adjective} {noun} {prep} the {spot}.",
    "the {person} {adverb} {past} my {adjective} {noun}, but the {noun} was {prep} the {spot}.",
    "{number} {plural} {motion} {adverb} {prep} the {adjective} {spot}.",
    "would the {person} {base} another {noun} for {name}?",
    "{name} and the {person} {past} every {noun} {time}.",
    "please {base} this {adjective} {noun} before {name} reaches the {spot}.",
    "{time}, {name}'s {noun} was {prep} the {adjective} {spot}.",
    "neither the {adjective} {noun} nor the {noun} pleased our {person}.",
    "how {adverb} the {plural} {motion} when {name} {past} the {noun}!",
    "{name} thinks that the {adjective} {person} {past} their {noun}.",
    "if the {plural} ever {base} that {noun}, they should leave the {spot}.",
    "the {noun} and the {noun} were {adjective}, so {number} {plural} {motion} {time}.",
    "where did {name} {base} the {noun}, and who {past} the {noun}?",
    "{prep} the {spot}, {adjective} {plural} {past} {name} and the {person}.",
)


def sentences(seed: str, taken: set[str]) -> Iterator[str]:
    """Yields endless sentences of one speaker, determined by `seed`; skips those in `taken`, and adds each to it."""
    draw = random.Random(seed)
    while True:
        text = _sentence(draw)
        if LETTERS[0] <= len(text) <= LETTERS[1] and text not in taken:
            taken.add(text)
            yield text


def _sentence(draw: random.Random) -> str:
    pattern = draw.choice(PATTERNS)
    text = re.sub(r"{(\w+)}", lambda slot: draw.choice(WORDS[slot[1]]), pattern)
    return text[0].upper() + text[1:]


def varied_sentences(seed: str) -> Iterator[str]:
    """Yields endless sentences of one reader with a large vocabulary, determined by `seed`, without repetition.

    Each list of words is dealt like a deck of cards, to its end before any word repeats, so that a few hundred
    sentences contain about as many different words as possible.
    """
    draw = random.Random(seed)
    cards: dict[str, list[str]] = {name: [] for name in (*VARIED_WORDS, "pattern")}

    def deal(name: str) -> str:
        if not cards[name]:
            pack = VARIED_PATTERNS if name == "pattern" else VARIED_WORDS[name]
            cards[name] = draw.sample(pack, len(pack))
        return cards[name].pop()

    taken: set[str] = set()
    while True:
        text = re.sub(r"{(\w+)}", lambda slot: deal(slot[1]), deal("pattern"))
        text = text[0].upper() + text[1:]
        if VARIED_LETTERS[0] <= len(text) <= VARIED_LETTERS[1] and text not in taken:
            taken.add(text)
            yield text


def transcript(text: str) -> str:
    """Formats a sentence as LibriSpeech does: capitals, single spaces, no punctuation but apostrophes."""
    return " ".join(re.sub(r"[^A-Z' ]", " ", text.upper()).split())
