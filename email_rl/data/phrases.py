"""The phrases of the embedded market: the values of a context, and the sentences that make up mails.

Every sentence of a part has exactly that part's mark, so that the gold model (gold_model.py) can find the part in any
text: the word or a paraphrase of a context's value, a number with a unit (proof), a phrase of CALLS or SPAM, a question
mark.
"""

from __future__ import annotations

# Values of a context: name → paraphrases that speak of it without the name. A smaller market takes the first few.
ROLES: dict[str, tuple[str, ...]] = {
    "CEO": ("the board", "the whole company"),
    "CFO": ("the margins", "the books"),
    "CTO": ("the uptime", "the codebase"),
    "HR manager": ("the hiring", "the staff turnover"),
    "marketing lead": ("the campaigns", "the brand"),
    "operations head": ("the shift plans", "the throughput"),
}
EXECUTIVES = ("CEO", "CFO", "CTO")
INDUSTRIES: dict[str, tuple[str, ...]] = {
    "healthcare": ("patients", "clinics"),
    "retail": ("shoppers", "shop floors"),
    "banking": ("account holders", "branches"),
    "logistics": ("shipments", "warehouses"),
    "education": ("students", "classrooms"),
    "energy": ("meters", "power lines"),
}
SOURCES: dict[str, tuple[str, ...]] = {
    "partner referral": ("shared partner",),
    "trade fair": ("show stand",),
    "web demo": ("screen tour",),
    "newsletter": ("monthly letter",),
    "webinar": ("online talk",),
    "podcast": ("audio show",),
}
PRODUCTS: dict[str, tuple[str, ...]] = {
    "analytics dashboard": ("all figures at a glance",),
    "scheduling tool": ("a calendar without gaps",),
    "security audit": ("every weak spot found",),
    "training portal": ("newcomers up to speed",),
    "payment gateway": ("money taken online",),
    "chat assistant": ("answers around the clock",),
}
CONTEXT = "{role} in {industry}, met through the {source}, interested in the {product}."

# Phrases by which gold_model.py recognises a part; every sentence below must agree with them (tested).
PROOF = r"\d+ (?:percent|hours|days|clients)"
CALLS = ("reply to this", "book a", "pick a slot", "send me", "click the link", "sign up")
SPAM = ("act now", "totally free", "winner", "limited time", "money back", "once in a lifetime")
GREETINGS = ("Hi,", "Hello,", "Hi there,", "Good morning,", "Good afternoon,", "Dear reader,")
CLOSINGS = ("Best regards,", "Kind regards,", "Many thanks,", "Warm wishes,", "All the best,")

# Sentences of each part; {slots} are filled from FILLERS, the value slots from a context or from another one.
SENTENCES = {
    "source": (
        "I am writing after the {source}.",
        "The {source} brought us together {when}.",
        "Following up on the {source}, here is my {idea}.",
        "It all began with the {source} {when}.",
        "You may remember us from the {source}.",
        "The {source} gave me your name.",
        "Since the {source} I have had {one} {idea} for you.",
        "My {colleague} mentioned the {source} to me.",
    ),
    "general": (
        "I hope your {season} is going well.",
        "I have followed your work for {while}.",
        "Your name came up {when}.",
        "My {colleague} asked me to write.",
        "I will keep this {short}.",
        "This is my first note to you.",
    ),
    "role": (
        "Every {role} I meet asks about this.",
        "For a {role} like you this is {useful}.",
        "I know that a {role} has little time.",
        "Another {role} told me the same {when}.",
        "It was built with a {role} in mind.",
        "This takes {weight} off the desk of a {role}.",
        "A {role} sees the {effect} first.",
        "We wrote it down for the {role}.",
    ),
    "role_paraphrase": (
        "You look after {role} every day.",
        "This helps with {role} {soon}.",
        "It is {useful} for {role}.",
        "We know how much {role} can demand.",
        "The {effect} shows in {role} {soon}.",
    ),
    "industry": (
        "We work with {many} {industry} teams.",
        "{Many} {industry} firms trust us already.",
        "The {industry} market is moving {fast}.",
        "Our {industry} customers saw the {effect} {soon}.",
        "Pressure on {industry} budgets keeps growing.",
        "We know the {industry} business {well}.",
        "In {industry} the {small} things count.",
        "It was made for {industry} from the first day.",
    ),
    "industry_paraphrase": (
        "We care about {industry} as you do.",
        "It is {useful} wherever there are {industry}.",
        "Our customers with {industry} saw the {effect} {soon}.",
        "More {industry} mean more {weight}.",
        "We know {industry} {well}.",
    ),
    "product": (
        "Our {product} is {easy} to start with.",
        "The {product} runs within {while}.",
        "With the {product} you see the {effect} {soon}.",
        "{Many} teams use our {product} daily.",
        "The {product} takes {weight} off your team.",
        "I can show you the {product} {soon}.",
        "Nothing in the {product} needs a manual.",
        "Our {product} fits {small} and large teams.",
    ),
    "product_paraphrase": (
        "Imagine {product}.",
        "What you get is {product}.",
        "It means {product}, {soon}.",
        "{Many} teams now have {product}.",
        "We promise {product} within {while}.",
    ),
    "proof": (
        "One customer saved {n} percent {when}.",
        "Errors fell by {n} percent {when}.",
        "Teams win back {n} hours each month.",
        "The switch took just {n} days.",
        "It now serves {n} clients.",
        "Costs dropped {n} percent within {while}.",
    ),
    "spam": (
        "Act now before it is too late!",
        "It is totally free, no strings attached!",
        "You are our lucky winner!",
        "This is a limited time price!",
        "Double your money back, we promise!",
        "It is a once in a lifetime chance!",
    ),
    "filler": (
        "We have been around for {while}.",
        "Our office is close to the {place}.",
        "Our team grew {when}.",
        "We like to keep things {short}.",
        "The weather at the {place} is {fine} today.",
        "We also run a {small} blog.",
    ),
    "question": (
        "Would {day} suit you?",
        "How do you handle this today?",
        "Is this on your list for the {season}?",
        "Could a {short} call help?",
        "What would make this {useful} for you?",
        "Shall we talk {soon}?",
        "Who else should hear about this?",
        "Does that sound {fine}?",
    ),
    "call": (
        "Reply to this mail by {day}.",
        "Book a {short} call for {day}.",
        "Pick a slot on {day} in my calendar.",
        "Send me a {short} note {soon}.",
        "Click the link below to start {soon}.",
        "Sign up for a trial by {day}.",
        "Reply to this with one line.",
        "Book a tour of {n} minutes.",
    ),
}
FILLERS = {
    "when": ("last week", "last month", "in spring", "last year", "in autumn", "recently"),
    "while": ("a few years", "some months", "two weeks", "a decade", "a short time"),
    "soon": ("this week", "soon", "next week", "right away", "this month", "today"),
    "idea": ("idea", "thought", "plan", "proposal", "suggestion"),
    "one": ("one", "a good", "a new", "a simple"),
    "colleague": ("colleague", "manager", "team mate", "neighbour", "friend"),
    "season": ("week", "quarter", "season", "summer", "winter", "year"),
    "short": ("short", "brief", "quick", "simple", "crisp", "plain"),
    "useful": ("useful", "helpful", "valuable", "relevant", "worthwhile", "handy"),
    "weight": ("work", "weight", "pressure", "paperwork", "routine", "effort"),
    "effect": ("effect", "difference", "gain", "change", "benefit", "result"),
    "many": ("many", "several", "a dozen", "plenty of", "a number of"),
    "Many": ("Many", "Several", "A dozen", "Plenty of", "A number of"),
    "fast": ("fast", "quickly", "in new ways", "under our feet"),
    "well": ("well", "inside out", "from practice", "by heart"),
    "small": ("small", "modest", "little", "tiny"),
    "easy": ("easy", "simple", "quick", "cheap", "painless"),
    "place": ("station", "river", "harbour", "old town", "park", "market square"),
    "fine": ("fine", "good", "pleasant", "fair"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
    "n": tuple(str(n) for n in range(11, 50)),
}
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Katja",
    "Liam",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
)
