// Starts Netron inside the studio, in place of its own index.js: what the studio calls, and is told.

import { Host, element, keyOf, view } from './parts.js';

const LEGIBLE = 0.72; // the smallest zoom at which names of nodes can be read

class Studio {

    constructor() {
        this.options = { shapes: false };
        this.colors = [];
        this.selected = [];
        this.ready = false;
        this._nodes = new Map(); // key -> [{ node, path }]
        this._places = new Map(); // node's SVG group -> { key, path, node }
        this._controls = new Set(); // what Netron itself answers clicks on
        this._wanted = null;
        this.seen = new WeakSet(); // subgraphs that were opened once
        this.blocks = new Set(); // subgraphs that stand open
    }

    attach(bridge, viewer) {
        this.bridge = bridge;
        this.viewer = viewer;
        const target = document.getElementById('target');
        target.addEventListener('click', (e) => this._click(e), true);
        target.addEventListener('contextmenu', (e) => this._menu(e), true);
        for (const kind of ['wheel', 'pointerdown']) {
            target.addEventListener(kind, () => { this._touched = true; }, { capture: true, passive: true });
        }
        window.addEventListener('keydown', (e) => this._key(e), true);
        window.addEventListener('resize', () => this._resized());
        bridge.started();
    }

    failed(text) {
        this.bridge.failed(text);
    }

    // ---- commands

    async open(address, name, options) {
        Object.assign(this.options, options);
        this._wanted = { address, name };
        if (this._opening) {
            return;
        }
        this._opening = true;
        try {
            while (this._wanted) {
                const { address, name } = this._wanted;
                this._wanted = null;
                this.ready = false;
                this.viewer.options.direction = this.options.direction || 'horizontal';
                this.viewer.options.weights = false;
                this._touched = false;
                this.blocks.clear();
                // eslint-disable-next-line no-await-in-loop
                await this.viewer.host._openModel(address, name, name);
            }
        } finally {
            this._opening = false;
        }
    }

    async setOptions(options) {
        Object.assign(this.options, options);
        if (!this.ready) {
            return;
        }
        this._touched = false;
        this.viewer.options.direction = this.options.direction;
        this.viewer._reload();
    }

    // rows: [layer name, [keys], ground, ink, words]
    color(rows) {
        this.colors = rows;
        for (const { node } of this._all()) {
            node.element.classList.remove('heat');
            const title = node.element.querySelector(':scope > title');
            if (title) {
                title.remove();
            }
        }
        for (const [name, keys, ground, ink, words] of rows) {
            for (const node of this._find(name, keys)) {
                if (ground) {
                    node.element.classList.add('heat');
                    node.element.style.setProperty('--ground', ground);
                    node.element.style.setProperty('--ink', ink);
                }
                const title = element('title', {});
                title.textContent = words;
                node.element.prepend(title);
            }
        }
    }

    // rows: [layer name, [keys]]
    select(rows, reveal) {
        this.selected = rows;
        const target = this.viewer.target;
        if (!target || !this.ready) {
            this._sought = reveal && rows.length > 0;
            return;
        }
        this._clearMarks();
        const main = [];
        for (const [name, keys] of rows) {
            this._find(name, keys).forEach((node, i) => {
                this._mark(node);
                if (i === 0) {
                    main.push(node.element);
                }
            });
        }
        if (reveal && main.length > 0) {
            this._touched = true; // a resize must not lead back to the beginning
            target.scrollTo([main[main.length - 1]]);
        }
    }

    // Keys of nodes whose name, operator or output holds the text; shows the `which`-th of them.
    search(text, which) {
        const wanted = text.toLowerCase();
        const found = !wanted ? [] : this._all().filter(({ node, key }) => {
            const { name, type } = node.value;
            return [name, key, type && type.name].some((word) => (word || '').toLowerCase().includes(wanted));
        });
        for (const { node } of this._all()) {
            node.element.classList.toggle('found', false);
        }
        found.forEach(({ node }) => node.element.classList.add('found'));
        if (found.length > 0) {
            const shown = found[((which % found.length) + found.length) % found.length];
            this.viewer.target.scrollTo([shown.node.element]);
            this._flash(shown.node.element);
        }
        this.bridge.searched(text, found.length);
    }

    fit() {
        const target = this.viewer.target;
        if (target) {
            target.zoom = Math.min(1, target.fitting());
            const container = document.getElementById('target');
            container.scrollLeft = (container.scrollWidth - container.clientWidth) / 2;
            container.scrollTop = (container.scrollHeight - container.clientHeight) / 2;
            this._zoomed();
        }
    }

    zoom(factor) {
        if (this.viewer.target) {
            this.viewer.target.zoom *= factor;
            this._zoomed();
        }
    }

    theme(dark, tokens) {
        // Kept once found: their words are rewritten, and a rule that nobody holds forgets what was noted on it.
        this.darkRules = this.darkRules || Array.from(document.styleSheets).flatMap((sheet) => Array.from(sheet.cssRules))
            .filter((rule) => rule.media && rule.media.mediaText.includes('prefers-color-scheme: dark'));
        for (const rule of this.darkRules) {
            rule.media.mediaText = dark ? 'all' : 'not all';
        }
        for (const [name, value] of Object.entries(tokens)) {
            document.documentElement.style.setProperty(`--${name}`, value);
        }
    }

    // ---- inside

    // Netron has drawn a graph, a whole one or the same with a subgraph opened or closed.
    drawn(whole) {
        this._nodes.clear();
        this._places.clear();
        this._controls = new Set();
        if (!this.viewer.target) {
            return;
        }
        this._index(this.viewer.target, '');
        this.ready = true;
        this.color(this.colors);
        if (whole) {
            this._begin();
        }
        this.select(this.selected, whole && (this._touched || this._sought));
        this._sought = false;
        if (!this._wanted) {
            window.requestAnimationFrame(() => this.bridge.rendered(this._places.size));
        }
    }

    _index(graph, path) {
        for (const entry of graph.nodes.values()) {
            const node = entry.label;
            if (!(node instanceof view.Node) || !node.element) {
                continue;
            }
            this._remember(node, path);
            this._controls.add(node.definition && node.definition.element);
            const name = node.value.name || keyOf(node.value);
            for (const block of node.blocks) {
                for (const item of block._items || []) {
                    for (const control of [item.content && item.content.expander, item.content && item.content.definition]) {
                        this._controls.add(control && control.element);
                    }
                    for (const inner of item.content && item.content.blocks || []) {
                        if (inner instanceof view.Block) {
                            this._index(inner.target, [path, name, item.name].filter((part) => part).join('/'));
                        }
                    }
                }
            }
        }
    }

    _remember(node, path) {
        const key = keyOf(node.value);
        if (!this._nodes.has(key)) {
            this._nodes.set(key, []);
        }
        this._nodes.get(key).push({ node, path, key });
        this._places.set(node.element, { key, path, node });
    }

    _all() {
        return Array.from(this._nodes.values()).flat();
    }

    // A key is unique in its graph only; the layer's name begins with the path of the graph.
    _find(name, keys) {
        const found = [];
        for (const key of keys) {
            const places = this._nodes.get(key) || [];
            const fitting = places.length > 1 ? places.filter(({ path }) => !path || name.startsWith(`${path}/`)) : places;
            fitting.sort((a, b) => b.path.length - a.path.length);
            if (fitting.length > 0) {
                found.push(fitting[0].node);
            }
        }
        return found;
    }

    // Whole graph when it stays legible, else its beginning at a legible size.
    _begin() {
        const target = this.viewer.target;
        const container = document.getElementById('target');
        if (container.clientWidth === 0) {
            return;
        }
        const whole = target.fitting();
        if (whole >= LEGIBLE) {
            this.fit();
            return;
        }
        const horizontal = this.options.direction !== 'vertical';
        const across = horizontal ? container.clientHeight / target._height : container.clientWidth / target._width;
        target.zoom = Math.max(LEGIBLE, Math.min(1, across));
        const first = document.querySelector('#canvas .graph-input') || document.querySelector('#canvas .graph-node');
        delete target._scrollLeft;
        delete target._scrollTop;
        if (first) {
            const box = first.getBoundingClientRect();
            const room = container.getBoundingClientRect();
            const side = horizontal ? box.left - room.left - 24 : (box.left + box.right) / 2 - room.left - room.width / 2;
            const down = horizontal ? (box.top + box.bottom) / 2 - room.top - room.height / 2 : box.top - room.top - 24;
            container.scrollLeft += side;
            container.scrollTop += down;
        }
        this._zoomed();
    }

    _resized() {
        window.clearTimeout(this._settle);
        this._settle = window.setTimeout(() => {
            if (this.ready && !this._touched) {
                this._begin();
            }
        }, 120);
    }

    _zoomed() {
        document.body.classList.toggle('far', this.viewer.target.zoom < 0.3);
    }

    _node(e) {
        for (let place = e.target; place && place.id !== 'target'; place = place.parentNode) {
            if (this._places.has(place)) {
                return this._places.get(place);
            }
        }
        return null;
    }

    _click(e) {
        this._touched = true;
        if (this._controls.has(e.target.closest('.node-item'))) {
            return; // Netron opens or closes a subgraph, or goes into a function
        }
        e.stopPropagation();
        e.preventDefault();
        const found = this._node(e);
        const adding = e.ctrlKey || e.metaKey || e.shiftKey;
        if (!found || !found.key) {
            if (!adding) {
                this._clearMarks();
                this.bridge.clicked('', '', false);
            }
            return;
        }
        if (!adding) {
            this._clearMarks();
            this._mark(found.node);
        }
        this.bridge.clicked(found.key, found.path, adding);
        const now = window.performance.now();
        if (!adding && this._last === found.node && now - this._when < 450) {
            this._details(found.node); // the engine's own double clicks get lost in Netron's pointer capture
        }
        this._last = found.node;
        this._when = now;
    }

    _menu(e) {
        e.preventDefault();
        const found = this._node(e);
        if (found && found.key) {
            this.bridge.menu(found.key, found.path, e.clientX, e.clientY);
        }
    }

    // Netron's own side panel shows a node's attributes, inputs and outputs.
    _details(node) {
        this.viewer.showNodeProperties(node.value, 'studio');
    }

    _key(e) {
        if (e.target instanceof window.HTMLInputElement) {
            return;
        }
        e.stopPropagation();
        if (e.key === 'Escape') {
            this.viewer._sidebar.close();
        }
        if (e.key === 'Backspace') {
            this.viewer.popTarget();
        }
        if (e.key === ' ') {
            e.preventDefault();
            this.fit();
        }
    }

    _mark(node) {
        node.element.classList.add('select');
        this._marked = this._marked || new Set();
        this._marked.add(node.element);
    }

    _clearMarks() {
        for (const marked of this._marked || []) {
            marked.classList.remove('select');
        }
        this._marked = new Set();
    }

    _flash(node) {
        node.classList.remove('flash');
        window.requestAnimationFrame(() => node.classList.add('flash'));
    }
}

const studio = new Studio();
window.studio = studio;

const channel = await new Promise((resolve) => new window.QWebChannel(window.qt.webChannelTransport, resolve));
const host = new Host();
const viewer = new view.View(host);
window.__view__ = viewer;
await viewer.start();
studio.attach(channel.objects.bridge, viewer);
