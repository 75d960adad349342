"""Answers as data sets write them, and what responses may make of them: right or wrong.

The forms are those of GSM8K (numbers, money, thousands), MATH (LaTeX in dollars and without, fractions, surds,
intervals, sets, tuples, matrices, text), AIME (integers with leading zeros), NuminaMath and DeepMath (equations,
units, percent, words).
"""

GOLD: dict[str, tuple[list[str], list[str]]] = {
    # gold: (right answers, wrong answers), each put into a response as it stands
    "72": (["#### 72", r"\boxed{72}", "#### 72.0"], ["#### 73", r"\boxed{-72}", r"\boxed{7}"]),
    "-5": ([r"\boxed{-5}", "#### -5", "$-5$"], [r"\boxed{5}", "#### 5", r"\boxed{-0.5}"]),
    "1,234": (["#### 1234", r"\boxed{1234}", r"\boxed{1,234}"], ["#### 1.234", r"\boxed{234}", "#### 1235"]),
    r"32,\!348": ([r"\boxed{32348}", "#### 32348", r"\boxed{32,348}"], [r"\boxed{348}", "#### 32349", "#### 32"]),
    r"\$32,\!348": ([r"\boxed{32348}", r"\boxed{\$32,\!348}", "#### 32,348"], [r"\boxed{32}", "#### 348"]),
    r"\$18.90": ([r"\boxed{18.90}", r"\boxed{\$18.90}", r"\boxed{18.9}"], [r"\boxed{18}", r"\boxed{\$19.80}"]),
    r"\$36": (["It costs $36$.", r"\boxed{36}", r"\boxed{\$36}"], [r"\boxed{37}", r"\boxed{\$3.6}"]),
    r"\text{\$5}": ([r"\boxed{5}", "#### 5", r"\boxed{\$5}"], [r"\boxed{6}", "#### 50"]),
    "$7$": ([r"\boxed{7}", "#### 7", "$7$"], [r"\boxed{8}", "$-7$"]),
    "0.5": ([r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{.5}"], [r"\boxed{5}", r"\boxed{\frac{1}{5}}"]),
    r"\frac{3}{4}": (
        [r"\boxed{\frac{3}{4}}", r"\boxed{0.75}", r"\boxed{\frac34}"],
        [r"\boxed{\frac{4}{3}}", r"\boxed{3}"],
    ),
    r"\dfrac{7}{9}": (
        [r"\boxed{\frac{7}{9}}", r"\boxed{7/9}", r"$\dfrac{14}{18}$"],
        [r"\boxed{\frac{9}{7}}", r"\boxed{0.7}"],
    ),
    r"-\frac{2}{3}": (
        [r"\boxed{-\frac{2}{3}}", r"\boxed{\frac{-2}{3}}"],
        [r"\boxed{\frac{2}{3}}", r"\boxed{-\frac{3}{2}}"],
    ),
    r"\frac{\sqrt{3}}{2}": (
        [r"\boxed{\frac{\sqrt{3}}{2}}", r"\boxed{\frac{\sqrt3}{2}}"],
        [r"\boxed{\sqrt{3}}", r"\boxed{\frac{3}{2}}"],
    ),
    r"2\sqrt{5}": ([r"\boxed{2\sqrt{5}}", r"\boxed{\sqrt{20}}"], [r"\boxed{5\sqrt{2}}", r"\boxed{2\sqrt{3}}"]),
    r"\pi": ([r"\boxed{\pi}", r"$\pi$"], [r"\boxed{2\pi}", r"\boxed{3}"]),
    r"4\pi": ([r"\boxed{4\pi}", r"$4 \pi$"], [r"\boxed{4}", r"\boxed{\frac{\pi}{4}}"]),
    r"2^{10}": ([r"\boxed{1024}", r"\boxed{2^{10}}"], [r"\boxed{20}", r"\boxed{2^{11}}"]),
    "x^2+2x+1": ([r"\boxed{x^2+2x+1}", r"\boxed{(x+1)^2}"], [r"\boxed{x^2+1}", r"\boxed{x^2-2x+1}"]),
    r"\frac{x+1}{x}": (
        [r"\boxed{\frac{x+1}{x}}", r"\boxed{1+\frac{1}{x}}"],
        [r"\boxed{\frac{x}{x+1}}", r"\boxed{x+1}"],
    ),
    "(1,2)": ([r"\boxed{(1,2)}", r"\boxed{(1, 2)}", r"\boxed{\left(1,2\right)}"], [r"\boxed{(2,1)}", r"\boxed{[1,2]}"]),
    "(3, -1, 4)": ([r"\boxed{(3,-1,4)}", r"$(3, -1, 4)$"], [r"\boxed{(3,1,4)}", r"\boxed{(3,-1)}"]),
    "(1, 2]": ([r"\boxed{(1, 2]}", r"\boxed{(1,2]}"], [r"\boxed{(1,2)}", r"\boxed{[1,2]}", r"\boxed{2}"]),
    r"[0,\infty)": ([r"\boxed{[0,\infty)}", r"\boxed{[0, \infty)}"], [r"\boxed{(0,\infty)}", r"\boxed{[0,1)}"]),
    r"(-\infty,3)\cup(5,\infty)": (
        [r"\boxed{(-\infty,3)\cup(5,\infty)}", r"\boxed{(-\infty, 3) \cup (5, \infty)}"],
        [r"\boxed{(-\infty,3)}", r"\boxed{(3,5)}"],
    ),
    r"\{1,2,3\}": ([r"\boxed{\{1,2,3\}}", r"\boxed{\{3,2,1\}}"], [r"\boxed{\{1,2\}}", r"\boxed{\{1,2,4\}}"]),
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": (
        [r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}"],
        [r"\boxed{\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}}", r"\boxed{10}"],
    ),
    "27": ([r"\boxed{27\%}", r"\boxed{27}", r"\boxed{27^\circ}"], [r"\boxed{0.27}", r"\boxed{72\%}"]),
    r"27\%": ([r"\boxed{27\%}", r"\boxed{27}"], [r"\boxed{28\%}", r"\boxed{2.7}"]),
    "90^\\circ": ([r"\boxed{90^\circ}", r"\boxed{90}"], [r"\boxed{60^\circ}", r"\boxed{9}"]),
    r"12\text{ cm}": ([r"\boxed{12}", r"\boxed{12\text{ cm}}"], [r"\boxed{13}", r"\boxed{1.2\text{ cm}}"]),
    r"5\text{ hours}": ([r"\boxed{5}", "#### 5"], [r"\boxed{6}", "#### 0.5"]),
    "x=3": ([r"\boxed{x=3}", r"\boxed{3}"], [r"\boxed{x=4}", r"\boxed{-3}"]),
    "y=2x+1": ([r"\boxed{y=2x+1}", r"\boxed{y = 2x + 1}"], [r"\boxed{y=2x-1}", r"\boxed{y=x+1}"]),
    r"\text{(B)}": ([r"\boxed{\text{(B)}}", r"\boxed{\text{B}}"], [r"\boxed{\text{(C)}}", r"\boxed{\text{A}}"]),
    "B": ([r"\boxed{B}", r"\boxed{\text{B}}"], [r"\boxed{C}", r"\boxed{A}"]),
    "073": ([r"\boxed{73}", r"\boxed{073}", "#### 73"], [r"\boxed{730}", r"\boxed{37}"]),
    "025": ([r"\boxed{25}", r"\boxed{025}"], [r"\boxed{52}", r"\boxed{250}"]),
    r"3\times 10^8": ([r"\boxed{3\times 10^8}", r"\boxed{300000000}"], [r"\boxed{3\times 10^7}", r"\boxed{308}"]),
    r"1+2i": ([r"\boxed{1+2i}", r"\boxed{2i+1}"], [r"\boxed{1-2i}", r"\boxed{2+i}"]),
    r"\log_2 3": ([r"\boxed{\log_2 3}", r"\boxed{\frac{\ln 3}{\ln 2}}"], [r"\boxed{\log_3 2}", r"\boxed{3}"]),
    r"\sqrt[3]{2}": ([r"\boxed{\sqrt[3]{2}}", r"\boxed{2^{1/3}}"], [r"\boxed{\sqrt{2}}", r"\boxed{\sqrt[3]{3}}"]),
    r"n(n+1)": ([r"\boxed{n(n+1)}", r"\boxed{n^2+n}"], [r"\boxed{n(n-1)}", r"\boxed{n^2+1}"]),
    r"\frac{1}{e}": ([r"\boxed{\frac{1}{e}}", r"\boxed{e^{-1}}"], [r"\boxed{e}", r"\boxed{\frac{1}{\pi}}"]),
    "100000": ([r"\boxed{100{,}000}", r"\boxed{100,000}", "#### 100000"], [r"\boxed{100}", r"\boxed{10000}"]),
}  # fmt: skip

HEADINGS = [
    ("42", "The sum is \\boxed{42}.\n\n#### Verification\nAdding the 20 and 22 gives it again.", True),
    ("42", "The sum is \\boxed{41}.\n\n#### Check of step 42\nFine.", False),
    ("42", "#### Step 1\nAdd.\n#### Step 2\nSo \\boxed{42}.", True),
    ("42", "Adding gives it.\n#### 42", True),
]
"""Whole responses: a heading in Markdown looks like the mark of GSM8K."""

PAIRS = [
    *((gold, right, True) for gold, (all_right, _) in GOLD.items() for right in all_right),
    *((gold, wrong, False) for gold, (_, all_wrong) in GOLD.items() for wrong in all_wrong),
    *HEADINGS,
]
