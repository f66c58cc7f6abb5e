"""English words for the sentences of the one-voice demo corpus, by their role in a sentence.

They are selected by sound: rare phones (as in measure, oyster, youth, cure, thumb) occur in many words and in varied
contexts. There are no digits and no abbreviations. The lists determine the bytes of the corpus and keep their spelling.
"""

from __future__ import annotations

_LISTS = {
    "noun": """
        acorn anchor ankle apple apron arrow ash axe badge bagel balloon banana barrel basin bean beard bell
        belt bench berry bolt bone bonnet boot bracelet branch brass bread breeze brick broom brush bucket
        buckle bulb butter button cabbage cactus cake camel camera canoe canvas cape cart carton castle
        catalogue cello chain chalk cherry chess chest chimney chisel cigar circus clarinet clay cloak closure
        cloth cloud clover coal cobweb cocoa coin collage collision comb compass cork corsage costume cotton
        couch cradle crayon cream crown crystal cube cup cure curtain daisy decision diamond dice division
        doll dome dough dove dragon drawing dream dress drill dust eagle earring easel eel egg elbow elm
        emerald engine eraser explosion eye fabric fan faucet fence fern fig filter finger fireplace flask
        flour flute foam fog fork fountain frame fruit fudge fur fusion gadget galaxy garlic gate gauge gem
        ghost giraffe glass globe glue goat gold goose grape grass gravel gravy guest gum ham hammock harp
        hatchet hay hazel heart hedge helmet herb hive honey hood hook horn hourglass ice illusion ink iron
        ivory ivy jacket jaw jelly jewel jigsaw juice jungle kayak kite kitten knee knife knob knot label lace
        lantern laurel lawn leaf leash leisure lens letter lever lid lily linen lion lizard lobster lock log
        lotus lunch lung magazine magnet mango marble mask mat medal melon menu mesh metal milk mint mirage
        mole money monkey moon moss moth mouse mouth mud muffin mug mural mushroom mustard nail napkin necktie
        needle nest net noodle nose notebook nut oak oar oatmeal occasion ocean oil olive onion organ ornament
        otter oven owl oyster palm pan panther paper parcel parrot pasta path peach peacock peanut pear pearl
        pebble pen pepper perfume petal piano pickle pie pigeon pillow pipe pitcher plank plate plough plum
        poem poison pond porch potato pouch powder prism prize pudding pulley puppet puppy purse quartz quilt
        quiver rabbit radio raft rain raisin rake raven razor recipe ribbon riddle robe robin robot rock
        rocket roof root rose ruby rug ruler sail salad salmon salt sand sandal sash satchel sauce sausage saw
        scarf scroll seal seed shadow shark shawl sheet shelf shield shovel shrimp sign silk sink skate
        skeleton sketch sled sleeve slipper snail snake soap sock sofa soup spade sparrow spear spice spider
        sponge spring spruce stamp star steam stew stove straw string sugar sundial swan sweater sword syrup
        tablet tail tambourine tea television thimble thistle thorn throne thumb thunder ticket tile timber
        toad toast tobacco tongue tool torch towel toy tractor trap tray treasury tripod truck trunk tulip
        turnip turtle twig urn valve vanilla vault veil velvet vest vine vinegar vision voice volcano vulture
        waffle wagon wallet walnut wand warmth wasp watch wax whale wheat whip whisker whistle wick wig willow
        window wing wire wolf wool worm wreath wrench yacht yarn yeast yogurt yoke zebra zipper
    """,
    "person": """
        actor admiral ambassador architect artist astronaut athlete author baby barber baron bishop boxer boy
        bride builder butcher butler chaplain clerk clown coach countess cowboy critic dancer dealer dentist
        diver duchess duke emperor expert father fiddler giant goddess governor hermit hero hiker historian
        inventor jailer janitor jockey judge juror king knight landlord lawyer leader lieutenant magician maid
        major merchant midwife miller monk mother nephew niece novelist nun orphan owner passenger patient
        pianist pirate plumber poet policeman priest prince professor prophet publisher referee reporter rider
        robber sailor scholar scientist sculptor senator sergeant servant sheriff smith spy squire surgeon
        tailor teenager tenor tourist trader traitor tutor tyrant usher viking voyager warrior weaver widow
        witch witness wizard youth
    """,
    "plural": """
        ants apes babies badgers bats bears beggars brothers bulls butterflies calves camels candidates cattle
        cavalry chickens chiefs clerks cows crabs crickets crows cubs deer donkeys doves dreamers ducks
        elephants elves fairies falcons farmers foxes frogs geese giants goats gorillas guards gulls hares
        hawks hens hornets huskies infants journalists jugglers kings kittens ladies lambs leopards lions
        locals mice monks moths mules neighbours nurses orphans outlaws owls oxen oysters parents penguins
        pigeons pigs pilgrims pirates ponies pups rebels robins rogues scouts seals sharks shoppers sisters
        skaters snails soldiers sparrows squirrels strangers swallows thieves tigers toddlers travelers
        turkeys twins villagers voters walkers wasps whales wolves women writers youths
    """,
    "past": """
        abandoned accepted adjusted adored altered arranged attached auctioned avoided baked balanced banned
        battered blamed blessed boiled bothered brushed built buried burned carved caught caused changed
        charged chased checked chewed chopped claimed cleared clutched coated combed completed cooked counted
        crossed crushed cured damaged decorated defended delivered demanded designed destroyed detested
        discovered dismissed displayed divided donated doubted dragged drenched dyed earned emptied enjoyed
        envied erased exchanged explored faced fastened feared fed fetched filled finished fixed flattened
        folded for forced framed froze gathered glimpsed grabbed greased grew guarded guessed hated heated
        helped hoisted hung ignored imagined inspected insured invented joined judged kissed labelled launched
        learned leased licked lifted loaded loathed locked loved lowered mailed managed matched melted mended
        missed mixed mocked mounted named needed nursed obtained offered oiled opened ordered overlooked owned
        parked passed peeled pinched placed planned planted pleased poked pondered poured praised preferred
        prepared preserved pressed promised protected pulled punched purchased questioned raised reached
        received recognised recorded refused rejected released removed renamed rented replaced rescued
        resented reserved respected restored revealed revised rinsed roasted rolled rubbed ruined sampled
        saved scattered scratched scrubbed searched seized shared sharpened shielded shipped shoved showed
        sliced smashed smelled smuggled sniffed soaked spared spoiled squeezed stacked stained stirred
        stitched stole stored stretched studied supplied surveyed swallowed swapped switched tapped tasted
        taught teased tested thanked tossed toured traded trained trapped treasured treated trimmed trusted
        twisted unfolded unloaded used valued viewed visited voiced waxed weeded welcomed wiped wished wore
        worshipped wove
    """,
    "base": """
        adopt allow annoy begin bend bite bounce break bring burn choose climb cover destroy discuss draw
        drink drive drop eat employ enjoy fetch fix follow forge forgive freeze frighten guess harm hear hide
        hold hurt imagine inspire invade join judge kick know launch leave lend loosen measure mention move
        notice nudge observe obtain oppose own paint pawn peel plough pull push quote reach read ride save see
        seize shake shoot shut sketch spell steal study tease throw touch trade treasure trust unearth use
        vacuum value visit watch weigh win worship
    """,
    "adjective": """
        absurd active alien amber amused anxious artificial awful awkward azure bald bare basic beige bitter
        black bleak blind blunt bold boring brave brittle bronze brown calm casual charming cheerful chilly
        chosen classic clean clever coarse colossal common costly crimson crooked crude cruel damp daring
        dazed deep delicate dense dim distant double dreadful drowsy dull eager early earthy elegant enormous
        equal exotic extra faded faint fair familiar fancy fashionable fierce final flat flawless fluffy
        forbidden fragile free fuzzy gentle giant glad gloomy glorious graceful grand gray greasy green grim
        happy harsh healthy hidden holy honest huge hungry icy ideal idle illusory imaginary innocent jagged
        jealous joyful juicy just keen kind lazy leather little local lofty lonely loud lovely loyal lucky
        lush magic massive mature mellow mighty mild moist mute mysterious naked nasty natural neat nervous
        new nimble noble noisy normal northern numb oblong odd official old opaque oval pale peculiar perfect
        poisonous polite pompous poor private proper proud pure quaint quick quiet random rapid rare ready
        regular rich rigid ripe robust rosy royal rude rural sacred sad safe salty scarlet secret secure
        serious shabby shaky shallow shy silent silly single sleepy slight slim slippery sloppy slow sly smart
        smug sober solid sour southern spare special spoiled stale steady steep sticky stiff stolen stout
        sturdy subtle sudden sunny super sweet swift tame tart tasty teal tender thirsty thorny thoughtful
        timid toxic tragic true twin uneven unusual urban urgent vague vain vast vicious violet vivid vulgar
        weak wealthy weary weird wicked wide wild wise worthless worthy young youthful zealous
    """,
    "adverb": """
        badly barely boldly bravely briefly briskly calmly carefully casually cheaply clumsily cruelly deeply
        eagerly easily exactly fairly faithfully finally firmly foolishly gently gladly gracefully greedily
        happily hardly hastily honestly jokingly joyfully kindly lazily loudly luckily madly mostly narrowly
        nearly never nicely nobly oddly often openly partly patiently poorly proudly quickly quietly rapidly
        rarely really rudely sadly safely secretly seldom seriously sharply shortly silently simply smoothly
        softly soon suddenly surely swiftly tenderly thoroughly truly usually vaguely warmly wildly wisely
    """,
    "motion": """
        appeared argued bathed begged blushed bowed breathed camped charged cheered chuckled clapped climbed
        coughed crawled cried danced dashed departed dined dived dozed drifted escaped fainted fasted fell
        fished fled flew floated frowned galloped gasped gazed giggled glowed grazed groaned growled grumbled
        hid howled hurried jogged joked jumped knelt laughed leaped lingered listened marched moaned mourned
        moved napped paddled panicked paused perched played plunged pouted prayed raced rambled rejoiced
        relaxed rested roamed roared rode rowed rushed sailed scowled screamed shivered shouted shrugged
        sighed skated skipped slept slid slipped smiled sneezed snored sobbed splashed stared starved stayed
        stood strolled stumbled swam swayed talked toiled trembled tripped trotted vanished voyaged waded
        waited walked wandered waved wept whispered whistled worked worried yawned yelled
    """,
    "spot": """
        abbey aisle alley arcade archway arena avenue bakery ballroom bank barn basement bay bog border
        boulevard brook cabin camp canal canyon cave cellar cemetery chapel church circus cliff clinic coast
        college corridor cottage courtyard creek dairy dam deck dock dungeon farm ferry forge fortress foundry
        gallery garage garden glacier gorge grove gym hall harvest hill hospital hotel hut inlet inn jail
        jetty kiosk laundry library lighthouse lodge lounge mansion marsh meadow mill mine moor mosque museum
        nursery observatory office orchard palace parlour pasture path pavilion peninsula pier plantation
        plateau plaza pool port prairie prison quarry ranch reef reservoir ridge road ruins sauna school shed
        shipyard shore shrine stable stadium stage street studio suburb swamp temple terrace theatre tomb
        trail tunnel valley vault veranda village vineyard volcano warehouse wharf woods yard zoo
    """,
    "name": """
        Adam Agnes Albert Alice Amy Andrew Anna Arthur Audrey Barbara Beatrice Boyd Bruce Carl Charles Chloe
        Claire Claude Cynthia Daisy Daniel David Deborah Dorothy Doyle Edith Edward Eleanor Emma Ethan Eugene
        Eve Faith Felix Floyd Frank Frederick George Gertrude Giles Grace Hannah Harold Harry Heather Helen
        Howard Hugh Ida Irene Isaac Ivan Jack Jane Jasper Joan Joyce Judith Julia Karen Keith Kenneth Kevin
        Laura Leonard Leroy Lily Louise Lucy Luke Mabel Martha Matthew Maurice Megan Nancy Nathan Nigel Nora
        Oliver Oscar Patrick Paul Peggy Philip Rachel Ralph Rebecca Robert Roger Roy Ruth Samuel Sarah Sheila
        Simon Sophie Steven Susan Thelma Theodore Thomas Timothy Troy Ursula Vera Victor Vivian Walter Wendy
        Yolanda Yves Zachary Zoe
    """,
    "prep": """
        above across against along around at behind below beneath beside beyond by inside into near opposite
        outside over past through toward under within
    """,
    "number": """
        both few fifteen fifty five forty four nine ninety seven seventeen several six sixty some ten thirty
        three twelve twenty two
    """,
    "time": """
        after church; after the wedding; all winter; at dawn; at last; at lunch; at once; before dinner;
        during the vote; every autumn; for a month; in August; in February; in January; in July; in June; in
        October; in September; last Thursday; last year; later; on Sunday; on Tuesday; on Wednesday; once a
        week; over the holidays; since March; soon afterwards; this morning; three times; today; tonight;
        twice; until Saturday; with great pleasure; without a choice; without joy; yesterday
    """,
}


def _entries(text: str) -> tuple[str, ...]:
    """Splits a list into its entries: phrases between semicolons, or single words."""
    return tuple(" ".join(entry.split()) for entry in (text.split(";") if ";" in text else text.split()))


VARIED_WORDS = {name: _entries(text) for name, text in _LISTS.items()}
