"""A small order book with ten planted defects, one to a function, for `make demo`.

find_order: the test is the wrong way round. add_line: a mutable default. quantity_of: a comparison to None by value.
total: a negated condition. read_price: a bare except. is_valid: should be `and`. load: a name that hides a builtin.
show: a loop variable that is never used. first_missing: should be `in`. convert: the original exception is lost.
"""


def find_order(orders, number):
    """Return the order with this number, or None."""
    for order in orders:
        if order.number != number:
            return order
    return None


def add_line(order, item, quantity, seen=[]):
    """Add a line to an order."""
    seen.append(item)
    order.lines.append((item, quantity))
    return order


def quantity_of(line):
    """How many of an item a line orders."""
    quantity = line.get("quantity")
    if quantity == None:
        return 1
    return quantity


def total(lines, discount):
    """Sum the lines and take off the discount."""
    amount = 0
    for price, quantity in lines:
        amount += price * quantity
    if not discount:
        amount = amount - discount
    return amount


def read_price(text):
    """Parse a price; None when the text is not one."""
    try:
        return float(text)
    except:
        return None


def is_valid(name, email):
    """Whether both parts of a contact are there."""
    if name is not None or email is not None:
        return len(name) > 0 and len(email) > 0
    return False


def load(path):
    """Read the lines of a file."""
    list = []
    with open(path) as file:
        for line in file:
            list.append(line.strip())
    return list


def show(order, out):
    """Write an order's lines."""
    for index, (item, quantity) in enumerate(order.lines):
        out.write(f"{quantity} x {item}\n")


def first_missing(numbers):
    """Return the smallest number from zero on that is not in the list."""
    number = 0
    while number not in numbers:
        number += 1
    return number


def convert(value, kinds):
    """Convert a value to the kind that is registered for it."""
    try:
        return kinds[type(value)](value)
    except KeyError:
        raise TypeError(f"no conversion for {value!r}")
