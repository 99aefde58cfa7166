"""Texts that would run, load or hide something if a page took them for more than text."""

_CORE = (
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "<svg><script>window.hit=1</script></svg>",
    "<iframe src=javascript:parent.hit=1></iframe>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "<body onload=window.hit=1>",
    "<input autofocus onfocus=window.hit=1>",
    "<details open ontoggle=window.hit=1>",
    "<a href=javascript:window.hit=1 autofocus onfocus=click()>x</a>",
    "[x](javascript:window.hit=1)",
    "![x](x onerror=window.hit=1)",
    "<math><mtext></mtext><mglyph><style><img src onerror=window.hit=1></style></mglyph></math>",
    "<object data=javascript:window.hit=1>",
    "<embed src=javascript:window.hit=1>",
    "<meta http-equiv=refresh content='0;url=javascript:window.hit=1'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<base href=//evil.example/>",
    "<style>*{background:url(//evil.example)}</style>",
    "<form action=//evil.example><button>x",
    "<template><script>window.hit=1</script></template>",
    "<noscript><p title='</noscript><img src onerror=window.hit=1>'>",
    "{{ constructor.constructor('window.hit=1')() }}",
    "${window.hit=1}",
)
_AROUND = ("{}", '"><{}', "'>{}", "</textarea></script>{}", "<!--{}-->")
INJECTIONS = tuple(around.format(core) for core in _CORE for around in _AROUND)
