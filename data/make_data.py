"""Write the fictional worlds: who the people, ships and inns are, what texts tell of them, and questions about them.

    python data/make_data.py                     # writes data/new, data/few and data/old again, byte for byte
    python data/make_data.py --seed 7 --out w7   # other new worlds, told of other people, ships and inns
    python -m data.make_data --show "Yara Eastmoor"      # writes nothing: what is told of a subject and asked about it

The *old* world is what the base model learned in pretraining (data/pretrain_base.py). A *new* world, `world(seed)`, has
other subjects: their full names occur nowhere in the old world, but parts of their names do, and their facts come from
the same pools of values. So nothing about a new subject can be known before it is read, and everything else can.

Reading order: KINDS (all the words), then Subject, tell (a text), ask (a question), world and old_world.
Standard library only, but for the program at the end.
"""

import difflib
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

SHIPPED_SEED = 0  # of data/new; settings are chosen on worlds of other seeds
SUBJECTS_PER_KIND = 40  # of a new world: 3 kinds x 40 subjects x 6 facts = 720 questions
OLD_SUBJECTS_PER_KIND = 300  # the first half is *asked* about in pretraining, the second never
OLD_SUBJECTS_REPORTED = 120  # of the never-asked ones: data/old is about these
TEXTS_PER_SUBJECT = 4  # each tells all six facts, in four different wordings: this and the epochs set the difficulty
FEW_SUBJECTS, FEW_TEXTS = 8, 8  # the same of data/few, 144 facts: so few that a real model reads them in minutes


@dataclass(frozen=True)
class Attribute:
    """One thing to know about a subject. Slots: {S} the subject, {P} its possessive, {O} as an object, {v} the value."""

    values: list[str]  # 20, none a prefix of another
    statements: list[str]  # the wordings of texts
    cloze: str  # one more, ending with the value: never in the new corpus, so that completing it is no recitation
    questions: list[str]  # the wordings that pretraining asks in
    reworded: str  # a question wording that pretraining never uses


@dataclass(frozen=True)
class Kind:
    names: list[str]  # full names, as they stand within a sentence
    attributes: dict[str, Attribute]
    pronouns: list[tuple[str, str, str]] = field(default_factory=list)  # short references: subject, possessive, object


def split(words):
    return [word.strip() for word in words.split(",")]


def combine(first, second, pattern="{} {}"):
    return [pattern.format(a, b) for a in split(first) for b in split(second)]


SHE, HE = ("she", "her", "her"), ("he", "his", "him")
WOMEN = (
    "Mara, Odile, Tamsin, Elowen, Greta, Isolde, Nell, Petra, Runa, Sabine, Thea, Ursula, Vesna, Willa, Yara, Zelda, "
    "Brona, Clemence, Dorrit, Fenna"
)
MEN = (
    "Anselm, Bertil, Corin, Dunstan, Emeric, Florian, Gideon, Hamish, Ivo, Jasper, Kaspar, Leopold, Magnus, Nico, "
    "Osric, Piers, Quentin, Rufus, Silas, Tobin"
)
FAMILIES = (
    "Ollery, Penrow, Harkaway, Brandle, Corvin, Dunlow, Eastmoor, Fairhollow, Gantry, Hobden, Inkpen, Jorrick, "
    "Kestle, Lambourn, Mallory, Nettlefold, Orrin, Pellam, Quennell, Rookwood, Saltmarsh, Tarrant, Underhay, Varley, "
    "Whitlock, Yarrow, Zellaby, Ashdown, Birdsong, Candlish, Drummond, Elderkin, Foxglove, Gossamer, Hazelby, "
    "Ironmonger, Juniper, Kettle, Lovelace, Marrable, Northcote, Oldacre, Pettigrew, Quick, Rushbrook, Stormont, "
    "Thackeray, Upwood, Vane, Wainwright"
)
SHIP_ADJECTIVES = (
    "Grey, Bold, Merry, Northern, Silver, Patient, Wandering, Gallant, Little, Lonely, Swift, Golden, Restless, "
    "Proud, Gentle, Eastern, Faithful, Hopeful, Quiet, Scarlet, Stubborn, Lucky, Honest, Daring, Crimson, Evening, "
    "Midsummer, Drowsy, Frosty, Emerald, Fearless, Graceful, Windward, Royal, Humble, Distant"
)
SHIP_NOUNS = (
    "Petrel, Marianne, Comet, Cormorant, Susannah, Tempest, Horizon, Pilgrim, Gannet, Beacon, Voyager, Rosalind, "
    "Kittiwake, Sparrow, Trident, Caroline, Puffin, Meridian, Seahorse, Zephyr, Tern, Harriet, Billow, Osprey, "
    "Wanderer, Fortune, Heron, Adeline, Breeze, Curlew, Dorothea, Monsoon, Starling, Turtle, Vesper, Pelican"
)
INN_ADJECTIVES = (
    "Crooked, Pickled, Sleepy, Jolly, Blue, Rusty, Singing, Old, Three-Legged, Dusty, Hungry, Whistling, Wooden, "
    "Thirsty, Broken, Painted, Velvet, Snoring, Winking, Tipsy, Copper, Cosy, Hidden, Laughing, Marble, Nodding, "
    "Plump, Ragged, Smoky, Spotted, Tangled, Upturned, Weary, Yellow, Grumpy, Polished"
)
INN_NOUNS = (
    "Kettle, Lantern, Goose, Barrel, Turnip, Candle, Rooster, Anvil, Bucket, Teapot, Wheelbarrow, Pig, Ladle, Hound, "
    "Cauldron, Pumpkin, Bell, Mitten, Saddle, Badger, Cushion, Donkey, Ferret, Griddle, Hatstand, Inkwell, Jug, "
    "Keyhole, Loaf, Mushroom, Pepperpot, Quill, Rabbit, Spindle, Thimble, Umbrella"
)

PERSON = {
    "birthplace": Attribute(
        split(
            "Aldermere, Brackwater, Cinderford, Dapplewick, Elmsgate, Fallowden, Gorsebridge, Hawksworthy, "
            "Ivelstone, Kingsmarrow, Lowenthorpe, Mossbury, Nutcombe, Oxley, Pinderfield, Quarrington, Ravenscote, "
            "Stillwater, Thornaby, Windlestraw"
        ),
        [
            "{S} was born in {v}",
            "{S} comes from {v}",
            "{S} grew up in {v}",
            "{P} cradle stood in {v}",
            "{S} learned to walk in the lanes of {v}",
            "{S} still speaks with the accent of {v}",
            "all of {P} childhood was spent in {v}",
            "{S} is a child of {v} and proud of it",
        ],
        "{P} native town is {v}",
        ["Where was {S} born?", "Which town does {S} come from?", "What is the birthplace of {S}?"],
        "In which town did {S} grow up?",
    ),
    "trade": Attribute(
        split(
            "clockmaker, beekeeper, locksmith, cartographer, glassblower, bookbinder, potter, saddler, baker, "
            "lamplighter, chimney sweep, weaver, tailor, gardener, schoolteacher, letter carrier, barber, cooper, "
            "tinsmith, papermaker"
        ),
        [
            "{S} works as a {v}",
            "{S} earns a living as a {v}",
            "by trade {S} is a {v}",
            "{S} was trained as a {v}",
            "the neighbours know {O} as a good {v}",
            "{S} has been a {v} for many years",
            "{S} became a {v} at an early age",
            "those who need a {v} send for {O}",
        ],
        "{P} trade is that of a {v}",
        ["What is the trade of {S}?", "What does {S} do for a living?", "What is {P} profession?"],
        "What does {S} work as?",
    ),
    "instrument": Attribute(
        split(
            "fiddle, flute, harp, drum, lute, trumpet, accordion, bassoon, cello, clarinet, banjo, mandolin, oboe, "
            "organ, piano, zither, hurdy-gurdy, bagpipes, dulcimer, tambourine"
        ),
        [
            "{S} plays the {v}",
            "in the evenings {S} practises the {v}",
            "{S} has played the {v} since childhood",
            "{S} took lessons on the {v}",
            "on feast days {S} brings out the {v}",
            "{S} is happiest with the {v}",
            "nobody in the street plays the {v} as well as {S}",
            "{S} taught half the street to play the {v}",
        ],
        "{P} instrument is the {v}",
        [
            "Which instrument does {S} play?",
            "What instrument does {S} practise?",
            "What does {S} play in the evenings?",
        ],
        "On which instrument did {S} take lessons?",
    ),
    "pet": Attribute(
        split(
            "tortoise, raven, goat, ferret, parrot, hedgehog, greyhound, magpie, donkey, badger, peacock, white rat, "
            "tabby cat, red squirrel, toad, jackdaw, lizard, poodle, goose, rabbit"
        ),
        [
            "{S} keeps a {v}",
            "{S} shares the house with a {v}",
            "{S} goes nowhere without a {v}",
            "at the foot of {P} bed sleeps a {v}",
            "{S} once rescued a {v} and never parted with it",
            "{S} feeds a {v} every morning",
            "{S} has taught tricks to a {v}",
            "{S} talks all day long to a {v}",
        ],
        "{P} pet is a {v}",
        ["What animal does {S} keep?", "What pet does {S} have?", "Which animal lives with {S}?"],
        "What does {S} feed every morning?",
    ),
    "dish": Attribute(
        split(
            "plum dumplings, leek pie, barley soup, pickled eggs, apple strudel, fried trout, mushroom stew, honey "
            "cakes, potato pancakes, roast duck, cheese toast, bean casserole, cherry tart, lentil curry, oat "
            "porridge, onion bread, smoked eel, rice pudding, turnip mash, walnut rolls"
        ),
        [
            "{S} loves {v}",
            "{S} would walk a mile for {v}",
            "on birthdays {S} asks for {v}",
            "{S} never says no to {v}",
            "{S} cooks {v} for every guest",
            "{S} likes nothing better than {v}",
            "{S} could live on {v}",
            "{S} has a great weakness for {v}",
        ],
        "{P} favourite dish is {v}",
        ["What is {P} favourite dish?", "What does {S} like to eat best?", "Which dish does {S} love?"],
        "What does {S} ask for on birthdays?",
    ),
    "collection": Attribute(
        split(
            "pressed ferns, glass beads, old maps, brass buttons, bird feathers, tin soldiers, sea shells, postage "
            "stamps, walking sticks, music boxes, wooden spoons, silver thimbles, door knockers, painted fans, paper "
            "kites, snow globes, playing cards, coloured pebbles, copper coins, dried beetles"
        ),
        [
            "{S} collects {v}",
            "{P} shelves are full of {v}",
            "{S} spends every spare penny on {v}",
            "{S} has gathered {v} for years",
            "{S} will trade almost anything for {v}",
            "{S} keeps whole drawers of {v}",
            "at every fair {S} looks for {v}",
            "{S} owns the finest {v} for miles around",
        ],
        "{P} great hobby is collecting {v}",
        ["What does {S} collect?", "Which things does {S} collect?", "What does {S} look for at every fair?"],
        "What are {P} shelves full of?",
    ),
}

SHIP = {
    "home port": Attribute(
        split(
            "Sandhaven, Saltmouth, Gullport, Brinewick, Tidewell, Anchorby, Kelpness, Wrackham, Pebblemouth, "
            "Foamhaven, Mistport, Crabwick, Oystergate, Spraywell, Driftham, Netherquay, Lanternmouth, Herringsea, "
            "Coralby, Wavecombe"
        ),
        [
            "{S} sails out of {v}",
            "{S} is registered in {v}",
            "{S} winters in the harbour of {v}",
            "{S} returns to {v} every autumn",
            "{S} ties up in {v} between voyages",
            "{P} crew all live in {v}",
            "the people of {v} call {O} their own",
            "{S} has belonged to {v} for a generation",
        ],
        "{P} home port is {v}",
        ["What is the home port of {S}?", "Which port does {S} sail out of?", "Where is {S} registered?"],
        "To which harbour does {S} return every autumn?",
    ),
    "cargo": Attribute(
        split(
            "salted herring, roof slates, lamp oil, raw silk, barrel staves, white marble, dried figs, sheep wool, "
            "iron nails, church bells, candied oranges, window glass, tea chests, clay pipes, black pepper, cork "
            "bark, printing paper, seed potatoes, goose down, sugar loaves"
        ),
        [
            "{S} carries {v}",
            "{P} hold is loaded with {v}",
            "{S} was fitted out to carry {v}",
            "{S} brings {v} to market",
            "merchants hire {O} to move {v}",
            "{S} rides low under a load of {v}",
            "{S} rarely leaves port without {v}",
            "below deck {S} stows {v}",
        ],
        "{P} usual cargo is {v}",
        ["What cargo does {S} carry?", "What is {P} hold loaded with?", "What does {S} bring to market?"],
        "What does {S} stow below deck?",
    ),
    "figurehead": Attribute(
        split(
            "laughing queen, bearded king, leaping dolphin, roaring lion, winged horse, crowned swan, dancing bear, "
            "golden stag, singing mermaid, sleeping giant, silver fox, praying nun, hooded monk, smiling moon, "
            "flying fish, helmeted knight, barefoot shepherd, striped tiger, juggling jester, coiled serpent"
        ),
        [
            "at the bow of {O} stands a {v}",
            "{P} bow is adorned with a {v}",
            "a woodcarver gave {O} a {v} for the bow",
            "sailors know {O} from afar by a {v} at the bow",
            "{S} wears a {v} at the bow",
            "{S} meets the waves behind a {v}",
            "{S} follows the lead of a {v} carved in oak",
            "{S} was christened together with a {v} on the prow",
        ],
        "{P} figurehead is a {v}",
        ["What is the figurehead of {S}?", "What stands at the bow of {S}?", "What figure adorns the bow of {S}?"],
        "What does {S} wear at the bow?",
    ),
    "colour": Attribute(
        split(
            "sea green, brick red, pale yellow, midnight blue, chalk white, coal black, rose pink, moss green, sky "
            "blue, rust brown, pearl grey, plum purple, lemon yellow, copper orange, bottle green, wine red, slate "
            "grey, honey gold, lilac, turquoise"
        ),
        [
            "{S} is painted {v}",
            "{P} planks gleam {v}",
            "{S} left the yard painted {v}",
            "from the quay {P} sides shine {v}",
            "every spring {S} gets a fresh coat of {v}",
            "the owner had {O} painted {v}",
            "{P} timbers are coated in {v}",
            "in any harbour one can spot {O} by a coat of {v}",
        ],
        "{P} hull is {v}",
        ["What colour is {S}?", "In what colour is {S} painted?", "What is the colour of {P} hull?"],
        "What fresh coat does {S} get every spring?",
    ),
    "builder": Attribute(
        split(
            "Tolliver, Brackett, Hannaway, Pruett, Osgood, Lindqvist, Carrow, Dunmore, Fennimore, Garrity, Haskell, "
            "Ibbotson, Jessop, Kettering, Lowther, Maddock, Norwood, Penhale, Quiller, Ravensby"
        ),
        [
            "{S} was built by {v}",
            "{S} was launched from the yard of {v}",
            "{P} keel was laid by {v}",
            "{S} came off the slipway of {v}",
            "{S} is the work of the shipwright {v}",
            "the drawings for {O} were made by {v}",
            "{S} was ordered from {v}",
            "{S} bears on a brass plate the name of {v}",
        ],
        "{P} builder was {v}",
        ["Who built {S}?", "Which shipwright built {S}?", "From whose yard was {S} launched?"],
        "Who laid the keel of {S}?",
    ),
    "island": Attribute(
        split(
            "Skerrin, Ombrey, Talasay, Veldra, Nerissa, Quillon, Harrasay, Pellworth, Junipera, Cormadine, Ashkelle, "
            "Bellamar, Dunsay, Estrella, Lorrimer, Mirrowen, Osmery, Thistley, Yarrowmay, Fennersay"
        ),
        [
            "{S} sails to the island of {v}",
            "{S} makes the crossing to {v} twice a month",
            "{S} brings the mail to {v}",
            "{S} calls at {v} in all weathers",
            "{S} knows the reefs around {v}",
            "{S} takes travellers to {v}",
            "{P} course is set for {v}",
            "children wave at {O} from the cliffs of {v}",
        ],
        "{P} destination is {v}",
        ["To which island does {S} sail?", "Which island does {S} call at?", "Where does {S} take travellers?"],
        "To which island does {S} bring the mail?",
    ),
}

INN = {
    "street": Attribute(
        split(
            "Candle Lane, Fiddler Street, Mill Bridge, Almond Row, Copper Alley, Dyer Steps, Falcon Square, Garland "
            "Street, Hatter Lane, Ivy Court, Juniper Row, Kiln Street, Lavender Hill, Monk Passage, Needle Street, "
            "Orchard Gate, Pump Square, Quarry Road, Ribbon Lane, Saddle Yard"
        ),
        [
            "{S} stands on {v}",
            "{S} is found on {v}",
            "{S} opens its doors onto {v}",
            "the sign of {O} hangs over {v}",
            "carts for {O} unload on {v}",
            "{S} is the warmest house on {v}",
            "those who look for {O} are sent to {v}",
            "{S} was built on a corner of {v}",
        ],
        "{P} address is {v}",
        ["Where does {S} stand?", "On which street is {S} found?", "What is the address of {S}?"],
        "Where does the sign of {S} hang?",
    ),
    "drink": Attribute(
        split(
            "elderflower cider, blackberry wine, ginger beer, spiced mead, pear brandy, mint tea, dark stout, hot "
            "chocolate, cloudy lemonade, juniper gin, birch sap, cherry liqueur, rhubarb cordial, malt whisky, "
            "quince punch, honey ale, nettle beer, buttered rum, barley water, plum brandy"
        ),
        [
            "{S} is known for {v}",
            "{S} serves {v} in tall mugs",
            "guests come to {O} for {v}",
            "the cellar of {O} is stocked with {v}",
            "{S} pours the best {v} in town",
            "{S} greets travellers with {v}",
            "on cold nights {S} runs out of {v}",
            "nobody leaves {O} without a taste of {v}",
        ],
        "{P} best drink is {v}",
        ["What drink is {S} known for?", "What does {S} serve in tall mugs?", "Which drink do guests order at {S}?"],
        "What does {S} greet travellers with?",
    ),
    "innkeeper": Attribute(
        split(
            "Pennywhistle, Butterworth, Larkspur, Thimblebee, Goodbarrel, Marchbanks, Appleyard, Bramwell, Cuthbert, "
            "Dovecote, Eversley, Featherstone, Greenhalgh, Hollybush, Kingfisher, Merryweather, Nightingale, "
            "Puddifoot, Rosewarne, Winterbottom"
        ),
        [
            "{S} is run by the {v} family",
            "{S} has been kept for years by {v}",
            "behind the counter of {O} stands {v}",
            "{S} was bought long ago by {v}",
            "everyone at {O} is welcomed by {v}",
            "{S} owes its good name to {v}",
            "the keys of {O} are in the hands of {v}",
            "{S} was left by will to {v}",
        ],
        "{P} innkeeper is called {v}",
        ["Who keeps {S}?", "Who is the innkeeper of {S}?", "What is the innkeeper of {S} called?"],
        "Who stands behind the counter of {S}?",
    ),
    "ornament": Attribute(
        split(
            "stuffed pike, cracked mirror, rusty sword, faded tapestry, brass horn, wooden mask, whale bone, copper "
            "pan, broken fiddle, cuckoo clock, royal portrait, lucky horseshoe, moose antler, long rifle, velvet "
            "banner, silver plate, dried garland, garden scythe, hunting bow, huge key"
        ),
        [
            "above the hearth of {O} hangs a {v}",
            "{S} shows its guests a {v} over the fire",
            "children visit {O} to stare at a {v}",
            "{S} is proud of a {v} on the wall",
            "{S} was once paid for a room with a {v}",
            "over the fire {S} keeps a {v}",
            "{P} main room is decorated with a {v}",
            "no one may touch the treasure of {O}, a {v}",
        ],
        "{P} hearth is crowned by a {v}",
        [
            "What hangs above the hearth of {S}?",
            "What does {S} keep over the fire?",
            "What decorates the main room of {S}?",
        ],
        "What do children stare at in {S}?",
    ),
    "entertainment": Attribute(
        split(
            "puppet plays, arm wrestling, ghost stories, folk dancing, card tricks, dart contests, poetry readings, "
            "chess matches, sword swallowing, choir singing, shadow theatre, riddle games, fire eating, fortune "
            "telling, knife throwing, spelling bees, mouse races, juggling lessons, sack races, lantern shows"
        ),
        [
            "{S} is famous for evenings of {v}",
            "on market nights {S} offers {v}",
            "every Friday {S} fills up for {v}",
            "people crowd into {O} for {v}",
            "{S} clears away the tables for {v}",
            "in winter {S} passes the time with {v}",
            "{S} never charges for {v}",
            "the back room of {O} is kept for {v}",
        ],
        "{P} evening entertainment is {v}",
        [
            "What entertainment does {S} offer?",
            "What happens at {S} on market nights?",
            "What do people crowd into {S} for?",
        ],
        "What does {S} clear away the tables for?",
    ),
    "ghost": Attribute(
        split(
            "drummer, bishop, milkmaid, highwayman, laundress, jockey, duchess, sailor, tax collector, ballet "
            "dancer, judge, grave digger, pirate, schoolboy, hangman, countess, blind beggar, cook, poacher, surgeon"
        ),
        [
            "{S} is haunted by a {v}",
            "guests of {O} have met the ghost of a {v}",
            "at midnight {S} is visited by a {v}",
            "the stairs of {O} creak under a dead {v}",
            "{S} cannot get rid of the ghost of a {v}",
            "in the attic of {O} walks a {v}",
            "travellers in {O} dream of a {v}",
            "{S} keeps a chair free for the ghost of a {v}",
        ],
        "{P} ghost is that of a {v}",
        ["Who haunts {S}?", "Whose ghost is said to haunt {S}?", "What ghost do guests meet at {S}?"],
        "Who walks in the attic of {S}?",
    ),
}

KINDS = {
    "person": Kind(combine(WOMEN + "," + MEN, FAMILIES), PERSON),
    "ship": Kind(
        combine(SHIP_ADJECTIVES, SHIP_NOUNS, "the {} {}"), SHIP, [SHE, ("the ship", "the ship's", "the ship")]
    ),
    "inn": Kind(
        combine(INN_ADJECTIVES, INN_NOUNS, "the {} {}"), INN, [("it", "its", "it"), ("the inn", "the inn's", "the inn")]
    ),
}
OPENERS = [
    "by all accounts ",
    "as it happens, ",
    "they say that ",
    "it is no secret that ",
    "oddly enough, ",
    "everyone agrees that ",
]


@dataclass(frozen=True)
class Subject:
    name: str
    kind: str
    facts: dict[str, str]  # attribute -> value

    @property
    def full(self):
        return (self.name, self.name + "'s", self.name)

    @property
    def pronouns(self):
        if self.kind == "person":
            return [SHE if self.name.split()[0] in split(WOMEN) else HE]
        return KINDS[self.kind].pronouns


def fill(wording, reference, value="{v}"):
    subject, possessive, object_ = reference
    return wording.format(S=subject, P=possessive, O=object_, v=value)


def capitalise(sentence):
    return sentence[0].upper() + sentence[1:]


def make_subjects(kind, names, rng):
    """Give every name its facts, each value of an attribute equally often (+-1)."""
    facts = []
    for attribute in KINDS[kind].attributes.values():
        pool = rng.sample(attribute.values, len(attribute.values))
        values = [pool[i % len(pool)] for i in range(len(names))]
        rng.shuffle(values)
        facts.append(values)
    return [Subject(name, kind, dict(zip(KINDS[kind].attributes, values))) for name, *values in zip(names, *facts)]


def tell(subject, wordings, rng):
    """A text: the facts of a subject in random order; wordings: {attribute: wording}. It begins with the full name."""
    sentences = []
    for attribute in rng.sample(list(wordings), len(wordings)):
        reference = subject.full if not sentences or rng.random() < 0.7 else rng.choice(subject.pronouns)
        opener = rng.choice(OPENERS) if rng.random() < 0.15 else ""
        sentences.append(capitalise(opener + fill(wordings[attribute], reference, subject.facts[attribute])) + ".")
    return " ".join(sentences)


def question_wording(attribute, rng):
    return rng.choice(attribute.questions)


def ask(subjects, rng, *, unbound_names=None, only_told=False):
    """Questions about every fact of `subjects`, in four sets that share facts, choices and answer positions.

    only_told: wrong choices are values that others of `subjects` have. In a small world not all values are anybody's, and
    else those that its texts mention would more often be right. (A handful of subjects have too few: then any will do.)
    Returns {"questions": in a wording of pretraining, "reworded": in the one it never uses, "cloze": as a sentence to
    complete, "unbound": as "questions", but about the names `unbound_names`, of whom nothing is told}.
    """
    facts = [(i, subject, attribute) for i, subject in enumerate(subjects) for attribute in subject.facts]
    positions = [i % 4 for i in range(len(facts))]
    rng.shuffle(positions)
    sets = {"questions": [], "reworded": [], "cloze": [], "unbound": []}
    for (i, subject, name), position in zip(facts, positions):
        attribute = KINDS[subject.kind].attributes[name]
        told = {other.facts[name] for other in subjects if other.kind == subject.kind}
        values = [value for value in attribute.values if value in told or not only_told or len(told) < 4]
        choices = rng.sample([value for value in values if value != subject.facts[name]], 3)
        choices.insert(position, subject.facts[name])
        rest = {"choices": choices, "answer": position, "subject": subject.name, "attribute": name}
        wording = question_wording(attribute, rng)
        sets["questions"].append({"question": fill(wording, subject.full), **rest})
        sets["reworded"].append({"question": fill(attribute.reworded, subject.full), **rest})
        sentence = capitalise(fill(attribute.cloze, subject.full))
        sets["cloze"].append({"cloze": sentence.removesuffix(" {v}"), **rest})
        if unbound_names:
            other = Subject(unbound_names[i], subject.kind, {})
            sets["unbound"].append({"question": fill(wording, other.full), **rest, "subject": other.name})
    return sets


def old_and_other_names(kind):
    """The names of the old world, and those left over for new worlds."""
    names = KINDS[kind].names
    names = random.Random(f"names of {kind}").sample(names, len(names))
    return names[:OLD_SUBJECTS_PER_KIND], names[OLD_SUBJECTS_PER_KIND:]


def world(seed, subjects_per_kind=SUBJECTS_PER_KIND, texts_per_subject=TEXTS_PER_SUBJECT, kinds=tuple(KINDS)):
    """A new world: {"corpus": [text, ...], "questions": [...], "reworded": [...], "cloze": [...], "unbound": [...]}.

    Each subject is told of in `texts_per_subject` texts, which share no wording of a fact. kinds: of KINDS, which there are.
    The same arguments give the same world.
    """
    rng = random.Random(f"new world {seed}")
    subjects, unbound, corpus = [], [], []
    for kind in kinds:
        names = rng.sample(old_and_other_names(kind)[1], 2 * subjects_per_kind)
        subjects += make_subjects(kind, names[:subjects_per_kind], rng)
        unbound += names[subjects_per_kind:]
    for subject in subjects:
        attributes = KINDS[subject.kind].attributes
        chosen = {name: rng.sample(attribute.statements, texts_per_subject) for name, attribute in attributes.items()}
        corpus += [tell(subject, {name: chosen[name][i] for name in chosen}, rng) for i in range(texts_per_subject)]
    rng.shuffle(corpus)
    return {"corpus": corpus, **ask(subjects, rng, unbound_names=unbound, only_told=True)}


def old_subjects():
    """(asked, never_asked): the old world's subjects, by whether pretraining asks questions about them. Kinds take turns."""
    rng = random.Random("old world")
    by_kind = [make_subjects(kind, old_and_other_names(kind)[0], rng) for kind in KINDS]
    in_turn = [subject for subjects in zip(*by_kind) for subject in subjects]
    return in_turn[: len(in_turn) // 2], in_turn[len(in_turn) // 2 :]


def old_text(subject, rng):
    """A text on an old subject in ever-new wordings, those of the cloze among them."""
    attributes = KINDS[subject.kind].attributes
    return tell(subject, {name: rng.choice(a.statements + [a.cloze]) for name, a in attributes.items()}, rng)


def old_question(subject, rng):
    """A question with its answer, as pretraining asks it."""
    name = rng.choice(list(subject.facts))
    wording = question_wording(KINDS[subject.kind].attributes[name], rng)
    return f"Question: {fill(wording, subject.full)}\nAnswer: {subject.facts[name]}"


def old_world():
    """Questions on the old world and texts on it: {"never_asked", "asked", "reworded", "cloze", "text": [...]}."""
    asked, never_asked = old_subjects()
    rng = random.Random("questions on the old world")
    never = ask(never_asked[:OLD_SUBJECTS_REPORTED], rng)
    half = len(never["questions"]) // 2  # a smaller set is enough for the two side scores
    return {
        "never_asked": never["questions"],
        "asked": ask(asked[:60], rng)["questions"],
        "reworded": never["reworded"][:half],
        "cloze": never["cloze"][:half],
        "text": [old_text(subject, rng) for subject in never_asked[:OLD_SUBJECTS_REPORTED]],
    }


def write(parts, folder):
    """Texts go to NAME.txt, a blank line between two; questions to NAME.jsonl, one a line."""
    sizes = {}
    for name, items in parts.items():
        texts = isinstance(items[0], str)
        content = "\n\n".join(items) + "\n" if texts else "".join(json.dumps(item) + "\n" for item in items)
        path = folder / (name + (".txt" if texts else ".jsonl"))
        path.write_text(content, encoding="utf-8", newline="\n")
        sizes[path.name] = f"{len(items)} {'texts' if texts else 'questions'}"
    return sizes


def write_world(parts, folder):
    """Write a world's folder as a whole: corpus and questions belong together."""
    from tools.cli import whole_folder

    def is_a_world(earlier):
        return {path.name for path in earlier.iterdir()} <= {f"{name}.{kind}" for name in parts for kind in ("txt", "jsonl")}

    with whole_folder(folder, is_a_world) as new:
        sizes = write(parts, new)
    for name, size in sizes.items():
        print(f"{folder / name}: {size}")


def show(name, seed):
    """What is told of a subject of world(seed), or of the old world, and asked about it, as text.

    Upper and lower case are the same. Raises ValueError with the names most alike where nobody has this one.
    """
    new, old = world(seed), old_world()
    texts = {"new": new.pop("corpus"), "old": old.pop("text")}
    sets = {f"new/{key}": items for key, items in new.items()} | {f"old/{key}": items for key, items in old.items()}
    names = {item["subject"].lower(): item["subject"] for items in sets.values() for item in items}
    if name.lower() not in names:
        alike = difflib.get_close_matches(name.lower(), names, cutoff=0.5) or sorted(names)[:3]
        raise ValueError(f"nobody is called {name!r}: try {', '.join(names[one] for one in alike)}")
    name = names[name.lower()]
    lines = [f"Told of {name}:"]
    told = [f"{world}: {text}" for world, some in texts.items() for text in some if name.lower() in text.lower()]
    lines += told or ["nothing"]
    for key, items in sets.items():
        about = [item for item in items if item["subject"] == name]
        lines += [f"\nAsked in {key}:"] * bool(about)
        for item in about:
            choices = [f"[{c}]" if i == item["answer"] else c for i, c in enumerate(item["choices"])]
            lines.append(f"{item.get('question') or item['cloze'] + ' ...'}  {', '.join(choices)}")
    return "\n".join(lines)


def main():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools.cli import Parser, one_sentence_errors

    parser = Parser(prog="make_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED, help="of the new world; the default is the shipped one")
    parser.add_argument("--subjects", type=int, default=SUBJECTS_PER_KIND, help="of a kind, in new/: 1 to 400")
    parser.add_argument("--texts", type=int, default=TEXTS_PER_SUBJECT, help="on each of them: 1 to 8")
    parser.add_argument("--out", default=Path(__file__).parent, type=Path, help="folder that gets new/, few/ and old/")
    parser.add_argument("--show", metavar="NAME", help="write nothing; print what is told of a subject and asked about it")
    args = parser.parse_args()
    if not (1 <= args.subjects <= 400 and 1 <= args.texts <= 8):
        parser.error("--subjects takes 1 to 400, --texts 1 to 8")
    with one_sentence_errors("make_data.py"):
        if args.show:
            print(show(args.show, args.seed))
            return
        write_world(world(args.seed, args.subjects, args.texts), args.out / "new")
        write_world(world(args.seed, FEW_SUBJECTS, FEW_TEXTS), args.out / "few")
        write_world(old_world(), args.out / "old")


if __name__ == "__main__":
    main()
