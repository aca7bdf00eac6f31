// Netron's parts as the studio wants them: its host without consent, age check and telemetry; its nodes with
// operator above name; its graphs with open subgraphs and free zoom.
//
// Netron hands its parts out through `window.exports` while its modules load; they are replaced here before
// the first graph is drawn. `window.studio` (boot.js) is there by then.

const parts = window.exports = {};
await import('../json.js');
await import('../xml.js');
await import('../protobuf.js');
await import('../grapher.js');
await import('../browser.js');
await import('../view.js');
export const { view, browser } = parts;

const SVG = 'http://www.w3.org/2000/svg';
export const element = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
        made.setAttribute(key, value);
    }
    if (parent) {
        parent.appendChild(made);
    }
    return made;
};

// ---------------------------------------------------------------- the host: no consent, no telemetry, no outside

export class Host extends browser.Host {

    constructor() {
        super();
        this._environment.menu = false;
        this._environment.packaged = false;
    }

    async view(value) {
        this._view = value;
    }

    async start() {
        this._view.show('welcome spinner');
    }

    async execute() {
        // the studio has its own commands
    }

    // An alert is an error: the studio says it. A notification ("this may take long") asks nothing:
    // Netron waits for the answer before it cancels, so none is given.
    async message(text, alert) {
        if (alert) {
            window.studio.failed(text || '');
            return 0;
        }
        return new Promise(() => {});
    }

    openURL() {}
    exception() {}
    event() {}
    get() {}
    set() {}
    delete() {}
    async export() {}
}

// ---------------------------------------------------------------- nodes as the studio draws them

// Operator above name, both centred on one ground, in place of Netron's header and list of weights.
class Label {

    constructor(operator, name, category) {
        this.operator = operator;
        this.name = name;
        this.category = category;
    }

    build(document, parent) {
        this.element = element('g', { class: `node-item node-item-type studio-label ${this.category}` }, parent);
        this.path = element('path', {}, this.element);
        this.lines = [this.operator, this.name].filter((text) => text).map((text, i) => {
            const line = element('text', { class: i === 0 ? 'studio-operator' : 'studio-name', 'text-anchor': 'middle' }, this.element);
            line.textContent = text;
            return line;
        });
    }

    measure() {
        const widths = this.lines.map((line) => line.getBBox().width);
        this.width = Math.max(104, Math.ceil(Math.max(...widths)) + 24);
        this.height = this.lines.length > 1 ? 40 : 32;
    }

    layout() {}

    update() {
        this.element.setAttribute('transform', `translate(${this.x},${this.y})`);
        this.path.setAttribute('d', rounded(this.width, this.height, this.first ? 4 : 0, this.last ? 4 : 0));
        const middle = this.width / 2;
        const places = this.lines.length > 1 ? [17, 31] : [20.5];
        this.lines.forEach((line, i) => {
            line.setAttribute('x', middle);
            line.setAttribute('y', places[i]);
        });
    }
}

const rounded = (w, h, top, bottom) =>
    `M${top},0h${w - 2 * top}a${top},${top} 0 0 1 ${top},${top}v${h - top - bottom}a${bottom},${bottom} 0 0 1 ${-bottom},${bottom}` +
    `h${2 * bottom - w}a${bottom},${bottom} 0 0 1 ${-bottom},${-bottom}v${top + bottom - h}a${top},${top} 0 0 1 ${top},${-top}z`;

// The end of an exported name says most: '…layer1.0/conv1/Conv'.
const cut = (text, length) => text.length <= length ? text : `\u2026${text.substring(text.length - length + 1)}`;

export const keyOf = (node) => {
    for (const argument of node.outputs || []) {
        for (const value of argument.value || []) {
            if (value && value.name) {
                return value.name.split('\n').shift();
            }
        }
    }
    return '';
};

const subgraphs = (node) => (node.attributes || []).concat(node.blocks || []).filter((a) => a.type === 'graph' && a.value);

view.Node = class extends view.Node {

    _add(value, type) {
        const plain = !type && value.type && !value.inner && !(value.chain && value.chain.length) && subgraphs(value).length === 0;
        if (!plain) {
            super._add(value, type);
            return;
        }
        const operator = value.type.name.split('.').pop();
        const name = value.name || keyOf(value);
        this.blocks.push(new Label(cut(operator, 24), cut(name, 24), value.type.category ? 'has-category' : ''));
    }
};

view.Edge = class extends view.Edge {

    // The shape of the tensor beside the line, when asked for.
    get label() {
        return window.studio.options.shapes ? this._shape : '';
    }

    set label(value) {
        this._shape = value;
    }
};

view.Graph = class extends view.Graph {

    // Subgraphs stand open to begin with: layers live in them.
    add(graph, signature) {
        this.blocks = window.studio.blocks;
        for (const attribute of graph.nodes.flatMap(subgraphs)) {
            if (!window.studio.seen.has(attribute.value)) {
                window.studio.seen.add(attribute.value);
                this.blocks.add(attribute.value);
            }
        }
        super.add(graph, signature);
    }

    // A narrow margin in place of Netron's hundred pixels: the panel is flat.
    restore(state) {
        super.restore(state);
        const canvas = document.getElementById('canvas');
        const origin = document.getElementById('origin');
        const background = document.getElementById('background');
        const box = origin.getBBox();
        const margin = 28;
        this._width = Math.ceil(box.width + 2 * margin);
        this._height = Math.ceil(box.height + 2 * margin);
        origin.setAttribute('transform', `translate(${margin - box.x}, ${margin - box.y}) scale(1)`);
        for (const part of [background, canvas]) {
            part.setAttribute('width', this._width);
            part.setAttribute('height', this._height);
        }
        canvas.setAttribute('viewBox', `0 0 ${this._width} ${this._height}`);
        this._updateZoom(this._zoom);
    }

    // Netron's own keeps zoom above 0.15 and under 1.4.
    _updateZoom(zoom, e) {
        const container = document.getElementById('target');
        const canvas = document.getElementById('canvas');
        zoom = Math.max(Math.min(this.fitting() * 0.8, 1), Math.min(zoom, 2.5));
        const box = container.getBoundingClientRect();
        const left = this._scrollLeft || container.scrollLeft;
        const top = this._scrollTop || container.scrollTop;
        const x = (e ? e.pageX - box.left : container.clientWidth / 2) + left;
        const y = (e ? e.pageY - box.top : container.clientHeight / 2) + top;
        canvas.style.width = `${zoom * this._width}px`;
        canvas.style.height = `${zoom * this._height}px`;
        this._scrollLeft = Math.max(0, x * zoom / this._zoom - (x - left));
        this._scrollTop = Math.max(0, y * zoom / this._zoom - (y - top));
        container.scrollLeft = this._scrollLeft;
        container.scrollTop = this._scrollTop;
        this._zoom = zoom;
    }

    // The zoom at which the whole graph is seen.
    fitting() {
        const container = document.getElementById('target');
        return Math.min(container.clientWidth / this._width, container.clientHeight / this._height);
    }
};

view.View = class extends view.View {

    async _updatePath(model, stack) {
        await super._updatePath(model, stack);
        window.studio.drawn(true);
    }

    // A subgraph was opened or closed in place.
    async refresh(anchor) {
        await super.refresh(anchor);
        window.studio.drawn(false);
    }
};
