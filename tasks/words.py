"""The vocabulary of pages and signs: short, common words only, so that the list of answers stays compact."""

WRITTEN = (
    "apple bag ball bank bed bell bird boat book box bread bus cake car chair city clock cloud coat coin cold "
    "corn cup desk dog door duck east exit farm fire fish fork fox frog game gate glass gold green hand hat hill "
    "home horse hotel ice jam key king lake lamp leaf lemon lion map milk moon music nest north nut open orange paper "
    "park pen piano pool queen rain ring river road rock roof rose salt sand school ship shoe shop silver snow sock "
    "south spoon star stone stop sugar sun table taxi tea tent tiger train tree wall water west wind window wolf wood"
).split()

LABELS = (
    "ada amy ann ben bob cat dan eva fay ian jim joe kim leo lia max mia ned pam ray rob sam sue ted tom una vic "
    "zoe anna carl emma hugo ivan lena lisa mark nina otto paul rosa"
).split()

ITEMS = (
    "tea milk rice soup cake nuts bread eggs fish corn salt jam ham oil pie figs plum pear lime leek kale oats soap"
).split()

HEADERS = "jan feb mar apr may jun jul aug sep oct nov dec mon tue wed thu fri sat sun low mid top old new".split()

# Keys of a form: whether the value is a word or a number with so many digits.
KEYS = {
    "name": "label",
    "room": 3,
    "date": 2,
    "code": 4,
    "city": "city",
    "age": 2,
    "gate": 2,
    "seat": 2,
    "bus": 3,
    "price": 2,
    "size": 2,
    "day": "day",
    "item": "item",
    "year": 4,
}

CITIES = "rome oslo lima cairo paris tokyo delhi milan berne quito dakar riga bonn york nice".split()
DAYS = "mon tue wed thu fri sat sun".split()
LETTERS = list("abcdefghjkmnpqrstuvwxyz")  # without i, l and o: they look like digits
