"""The page of a report: a Jinja template, complete in itself, for wide and narrow, light and dark screens."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66em; margin: 1.5em auto; padding: 0 1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { padding: .3em .7em; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
tr + tr, tbody tr { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
small { display: block; opacity: .7; }
svg { width: 100%; max-width: 40em; height: auto; }
figure { display: inline-block; margin: 0 1em 1em 0; }
figure img { width: 84px; height: 84px; }
figcaption { font-size: 13px; opacity: .8; }
.warning { border-left: 4px solid #c60; padding-left: .7em; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if trained_on %}
<p>Trained on {{ trained_on }}.</p>
{% endif %}
<div class="wide"><table>
<thead><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for text, interval in row %}<td>{{ text }}{% if interval %}<small>{{ interval }}</small>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
<p>Rates in %. Accuracy: mean and deviation over 10 folds, image and mirror image; &ldquo;1 view&rdquo;: without the
mirror image. Small figures and the column 95&nbsp;%: intervals of resampled pairs. n/m: not measurable, too few pairs
of two persons. Names of others above a column: their published accuracy, and the difference to it.</p>
{{ roc }}
{% for set in sets %}
<h2>{{ set.name }}</h2>
{% for line in set.warnings %}
<p class="warning">{{ line }}</p>
{% endfor %}
<div class="wide"><table>
{% for name, text in set.facts %}
<tr><td>{{ name }}</td><td style="text-align: left; white-space: normal">{{ text }}</td></tr>
{% endfor %}
{% for far, value, interval in set.tar %}
<tr><td>TAR at FAR {{ far }}</td><td style="text-align: left">{{ value }}{% if interval %} ({{ interval }}){% endif %}
</td></tr>
{% endfor %}
</table></div>
{{ set.histogram }}
{% for kind in set.hardest %}
<h3>{{ kind.title }}: {{ kind.wrong }}</h3>
{% if not kind.wrong %}
<p>None. The pairs of {{ kind.kind }} nearest to the threshold:</p>
{% endif %}
{% for pair in kind.pairs %}
<figure>{% for image in pair.images %}<img alt="" src="{{ image }}">{% endfor %}
<figcaption>pair {{ pair.number }}, cosine {{ pair.cosine }}, threshold {{ pair.limit }}</figcaption></figure>
{% endfor %}
{% endfor %}
<details><summary>The folds</summary><div class="wide"><table>
<tr><th>fold</th><th>accuracy %</th><th>threshold (squared distance)</th><th>VAL %</th><th>FAR %</th></tr>
{% for accuracy, threshold, val, far in set.folds %}
<tr><td>{{ loop.index }}</td><td>{{ accuracy }}</td><td>{{ threshold }}</td><td>{{ val }}</td><td>{{ far }}</td></tr>
{% endfor %}
</table></div></details>
{% if set.problems %}
<h3>Left out</h3>
<ul>
{% for line in set.problems %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
{% endfor %}
</body>
</html>
"""
