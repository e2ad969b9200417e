"""What stands in documents, in both languages."""

from __future__ import annotations

SUBJECTS = (
    ("The committee", "委员会"),
    ("Our library", "图书馆"),
    ("The museum", "博物馆"),
    ("A local school", "当地学校"),
    ("The city council", "市议会"),
    ("The research group", "研究小组"),
)
VERBS = (
    ("opened", "开放了"),
    ("planned", "规划了"),
    ("repaired", "修缮了"),
    ("presented", "展示了"),
    ("bought", "购置了"),
    ("described", "介绍了"),
)
OBJECTS = (
    ("a new garden", "一座新花园"),
    ("two reading rooms", "两间阅览室"),
    ("an old bridge", "一座老桥"),
    ("the winter programme", "冬季活动"),
    ("a set of maps", "一套地图"),
    ("three workshops", "三间工坊"),
)
WHENS = (
    ("last spring", "去年春天"),
    ("in October", "十月份"),
    ("after the meeting", "会议之后"),
    ("this week", "本周"),
    ("before the holidays", "假期之前"),
    ("on Monday", "星期一"),
)
ENDINGS = (
    ("and invited everyone", "并邀请大家参加"),
    ("with help from volunteers", "得到了志愿者的帮助"),
    ("although it rained", "尽管下着雨"),
    ("for the first time", "这是第一次"),
)
HEADINGS = (
    ("Annual Report", "年度报告"),
    ("Local News", "本地新闻"),
    ("Meeting Notes", "会议记录"),
    ("Events", "活动安排"),
    ("Summary", "内容摘要"),
    ("Background", "背景介绍"),
    ("Next Steps", "后续计划"),
)

FORM_TITLES = (("Registration Form", "登记表"), ("Member Card", "会员卡"), ("Delivery Note", "送货单"))
FIRST, LAST = (
    ("Alice", "Bruno", "Carla", "Dmitri", "Elena", "Farid", "Greta"),
    ("Novak", "Silva", "Berg", "Okafor", "Rossi"),
)
ZH_LAST, ZH_FIRST = "王李张刘陈杨赵", ("伟", "芳", "娜", "敏", "静", "丽华", "志强", "建国")
CITIES = (("Lisbon", "上海"), ("Oslo", "北京"), ("Vienna", "广州"), ("Dublin", "成都"), ("Prague", "南京"))
KEYS = {
    "name": ("Name", "姓名"),
    "city": ("City", "城市"),
    "date": ("Date", "日期"),
    "number": ("Number", "编号"),
    "phone": ("Phone", "电话"),
    "amount": ("Amount", "金额"),
}

SHOPS = (("CORNER SHOP", "便民超市"), ("GREEN MARKET", "绿色市场"), ("CITY BAKERY", "城市面包店"))
GOODS = (
    ("Bread", "面包"),
    ("Milk", "牛奶"),
    ("Cheese", "奶酪"),
    ("Apples", "苹果"),
    ("Rice", "大米"),
    ("Tea", "茶叶"),
    ("Coffee", "咖啡"),
    ("Eggs", "鸡蛋"),
    ("Soap", "肥皂"),
    ("Honey", "蜂蜜"),
)

TABLE_TITLES = (("Stock List", "库存表"), ("Score Sheet", "成绩单"), ("Price List", "价目表"))
COLUMNS = (("Monday", "星期一"), ("Tuesday", "星期二"), ("Wednesday", "星期三"), ("Thursday", "星期四"))
